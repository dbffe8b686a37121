# syntax=docker/dockerfile:1.7-labs
# escape=`
FROM alpine
RUN echo `
  hi
COPY a b\
