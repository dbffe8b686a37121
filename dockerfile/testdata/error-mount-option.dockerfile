FROM alpine
RUN echo hello && \
    true
RUN --mount=type=cache,tarket=/c x
