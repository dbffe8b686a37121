FROM alpine AS scratch
FROM alpine AS dup
FROM busybox AS dup
FROM alpine AS context
