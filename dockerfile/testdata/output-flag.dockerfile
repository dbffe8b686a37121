#! output-layers app:/out,mode=append
FROM alpine AS app
RUN make
LABEL a=b
