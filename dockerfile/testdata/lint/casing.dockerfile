from alpine AS Build
RUN a
run b
Run c
FROM alpine as other
COPY --from=build a b
