ARG STAGE=x
FROM alpine
ENV NAME=x
COPY --from=$STAEG a b
