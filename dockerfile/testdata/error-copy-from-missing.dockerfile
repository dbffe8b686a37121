FROM alpine AS builder
COPY --from=missing a b
