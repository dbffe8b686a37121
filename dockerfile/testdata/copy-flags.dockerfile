FROM alpine
USER app
WORKDIR /w
COPY a b dir/
COPY --chown=bob:users a /a
COPY --chown=bob a /a
COPY --chown=7 a b /d/
COPY --chown=root:5 a /a
COPY --chmod=0644 a /a
COPY --chmod=u=rwX,go=rX a /a
COPY --exclude=*.md --exclude=!README.md . /x
COPY --parents a/b/c.txt ./x/./y/*.go /p/
COPY *.txt .
COPY ["with space", "/to there/"]
COPY --from=busybox /etc/hosts /h2
COPY . /d/.
