#! arg GIVEN=from-cli
#! arg HTTP_PROXY=http://proxy
#! arg no_proxy=localhost
#! arg UNUSD=1
#! arg BUILDKIT_INLINE_CACHE=1
ARG MAIN=main
ARG GIVEN=main-default
FROM alpine AS a
RUN echo none
ARG MAIN
ARG GIVEN UNUSED LOCAL=$MAIN-x
ARG TARGETPLATFORM TARGETSTAGE
RUN echo all
ENV LOCAL=env
RUN echo env
FROM a
ARG LATE=1
RUN echo child
