FROM alpine
COPY --link --chown=bob a b
