FROM alpine
OUTPUT --max-layers=200 /x
