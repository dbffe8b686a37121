#! platform linux/amd64
FROM other
RUN uname -m
