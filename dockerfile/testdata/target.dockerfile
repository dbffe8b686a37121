#! target Build
FROM alpine AS build
RUN a
FROM missing
