FROM alpine
COPY git@github.com:user/repo.git b
