#! no-cache-filter one
FROM alpine AS one
RUN b
FROM one
RUN c
