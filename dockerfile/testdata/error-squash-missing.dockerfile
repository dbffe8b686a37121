FROM alpine AS a
FROM alpine AS b
RUN x
FROM b AS c
SQUASH --since=bb
