FROM alpine
RUN --network=hosts x
