FROM alpine
WORKDIR --mkdir /x
