#! context alpine=docker-image://missing
FROM alpine
