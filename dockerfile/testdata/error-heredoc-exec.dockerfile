FROM alpine
COPY <<a
x
a
