#! platform linux/amd64
FROM other
