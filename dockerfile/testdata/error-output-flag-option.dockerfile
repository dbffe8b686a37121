#! output-layers app:/x,mod=append
FROM alpine AS app
