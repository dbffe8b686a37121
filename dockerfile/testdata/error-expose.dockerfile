FROM alpine
EXPOSE 80/tpc
