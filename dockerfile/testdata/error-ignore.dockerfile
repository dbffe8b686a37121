#! ignore [
FROM scratch
COPY a b
