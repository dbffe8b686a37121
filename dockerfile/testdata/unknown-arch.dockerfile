FROM --platform=linux/amd46 scratch AS one
COPY a /
FROM --platform=linux/amd64 scratch
COPY --from=one /a /
