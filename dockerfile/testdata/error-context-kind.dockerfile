#! context alpine=docker-imag://x
FROM alpine
