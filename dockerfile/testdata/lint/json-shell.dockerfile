FROM alpine
SHELL ["/bin/bash", "-c"]
CMD a
