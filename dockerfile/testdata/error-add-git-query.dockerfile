FROM alpine
ADD https://github.com/user/repo.git?brnch=x b
