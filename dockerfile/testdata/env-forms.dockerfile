FROM alpine
ENV legacy some value
ENV A=1 B=2
ENV A=3
RUN env
