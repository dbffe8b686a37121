FROM alpine
WORKDIR /${DIR:?give a directory}
