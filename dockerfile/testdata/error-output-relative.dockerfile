FROM alpine
OUTPUT x
