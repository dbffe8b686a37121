#! platform linux/arm64
#! label org.example=x
ARG BASE=alpine
ARG TAG
FROM --platform=$BUILDPLATFORM golang:1.26 AS tools
RUN go build
FROM ${BASE}:${TAG:-3.20} AS final
COPY --from=tools /out /
FROM final
