FROM alpine AS app
ENV BEFORE=1
OUTPUT --mode=append --previous=example.com/app:1 --max-layers=40 /layers
COPY --chown=app blob /layers/output/blobs/sha256/
COPY src /src
COPY --link more /layers/output/more
RUN --mount=target=/ctx make
WORKDIR /srv
ENV AFTER=2
CMD run
FROM app AS sub
RUN sub
FROM scratch
COPY --from=app /x /x
COPY --from=sub /y /y
