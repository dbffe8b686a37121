#! ignore * !a
FROM scratch
COPY . /
COPY b /
