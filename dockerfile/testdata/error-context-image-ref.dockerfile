#! context alpine=docker-image://UPPER
FROM alpine
