FROM alpine
OUTPUT --mode=append --generator=auto /x
