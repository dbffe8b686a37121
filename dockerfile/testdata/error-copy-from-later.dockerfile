FROM alpine
COPY --from=later a b
FROM alpine AS later
FROM scratch
COPY --from=0 / /
