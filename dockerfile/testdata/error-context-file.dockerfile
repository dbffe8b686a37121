#! url ftp://example.com/x
FROM alpine
COPY . .
