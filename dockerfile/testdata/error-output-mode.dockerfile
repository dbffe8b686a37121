FROM alpine
OUTPUT --mode=apend /x
