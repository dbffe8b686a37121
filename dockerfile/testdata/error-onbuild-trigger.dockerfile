FROM alpine AS base
ONBUILD RUN --mount=type=cash x
FROM base
