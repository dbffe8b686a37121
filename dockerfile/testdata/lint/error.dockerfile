# check=error=true
FROM alpine AS A
RUN --bogus x
