FROM alpine
OUTPUT --mod=append /x
