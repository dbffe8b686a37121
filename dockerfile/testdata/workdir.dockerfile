FROM lived
WORKDIR sub
RUN pwd
WORKDIR /
WORKDIR a/../b
USER root
WORKDIR /c/
