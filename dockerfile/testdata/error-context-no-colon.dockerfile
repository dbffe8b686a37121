#! context alpine=busybox
FROM alpine
