FROM alpine
SQUASH --all --since=x
