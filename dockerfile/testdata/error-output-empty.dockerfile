FROM alpine
OUTPUT --mode= /x
