FROM alpine
RUN --mount=from=later,target=/x y
FROM alpine AS later
FROM alpine
COPY --from=0 / /
