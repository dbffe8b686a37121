#! output-layers ap:/x
FROM alpine AS app
