FROM alpine
RUN ok
 COPPY a b
