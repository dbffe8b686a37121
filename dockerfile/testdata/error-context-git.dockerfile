#! context src=git://h/r?what=1
FROM scratch
COPY --from=src a b
