#! runnable linux/s390x
FROM other
RUN uname -m
