#! target 0
FROM scratch
LABEL a=b
FROM missing
