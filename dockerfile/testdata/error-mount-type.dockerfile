FROM alpine
RUN --mount=type=cash,target=/c x
