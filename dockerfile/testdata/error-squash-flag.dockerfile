FROM alpine
SQUASH --sinc=x
