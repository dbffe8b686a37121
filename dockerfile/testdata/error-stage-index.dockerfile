#! target 5
FROM alpine
