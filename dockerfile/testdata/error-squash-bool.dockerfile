FROM alpine
SQUASH --all=maybe
