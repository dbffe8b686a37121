#! arg SOURCE_DATE_EPOCH=1700000000
#! platform linux/arm64
FROM alpine
ENV BEFORE=1
OUTPUT --generator=auto,max=3 --previous=none /layers
RUN make
LABEL a=b
USER nobody
