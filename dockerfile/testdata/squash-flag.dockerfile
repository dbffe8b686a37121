#! squash
FROM alpine AS base
RUN one
FROM base
RUN two
LABEL a=b
