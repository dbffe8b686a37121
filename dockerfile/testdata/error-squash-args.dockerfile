FROM alpine
SQUASH now
