#! context build=docker-image://prebuilt
#! context alpine::linux/arm64=docker-image://wrong
FROM missing AS build
RUN make
COPY --from=missing2 a b
FROM alpine
COPY --from=build /out /
