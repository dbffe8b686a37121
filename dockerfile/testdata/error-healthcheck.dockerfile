FROM alpine
HEALTHCHECK --interval=soon CMD x
