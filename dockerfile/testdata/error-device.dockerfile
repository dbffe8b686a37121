FROM alpine
RUN --device=a,requird=1 x
