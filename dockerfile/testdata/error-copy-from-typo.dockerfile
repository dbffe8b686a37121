FROM alpine AS missing-one
FROM scratch
COPY --from=missing-on a b
