FROM alpine
OUTPUT /x
OUTPUT /y
