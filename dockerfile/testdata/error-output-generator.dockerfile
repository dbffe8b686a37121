FROM alpine
OUTPUT --generator=auto,x /x
