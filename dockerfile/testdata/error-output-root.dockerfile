FROM alpine
OUTPUT /
