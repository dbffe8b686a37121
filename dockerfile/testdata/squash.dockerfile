FROM alpine AS base
RUN one
RUN two
SQUASH AS merged
RUN three
SQUASH
FROM merged AS on
RUN four
RUN five
SQUASH --since=base
FROM merged AS all
RUN six
SQUASH --all
FROM scratch
COPY --from=merged /a /a
COPY --from=all /b /b
COPY --from=base /c /c
