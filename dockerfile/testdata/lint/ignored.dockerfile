#! ignore * sub/
FROM scratch
COPY . /
COPY a sub/b /
