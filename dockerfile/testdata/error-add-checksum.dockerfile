FROM alpine
ADD --checksum=sha256:12 https://example.com/a b
