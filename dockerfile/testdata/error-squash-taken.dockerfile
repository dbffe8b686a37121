FROM alpine AS x
FROM alpine
SQUASH AS x
