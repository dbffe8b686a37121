ARG VERSION=12
FROM debian:${VERSION} AS build
WORKDIR /src
COPY . .
ARG CFLAGS=-O2
ENV A=b C="d e"
RUN make $CFLAGS
FROM scratch
COPY --from=build /src/app /app
ENTRYPOINT ["/app"]
CMD ["-v"]
