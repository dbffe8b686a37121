FROM alpine
OUTPT /x
