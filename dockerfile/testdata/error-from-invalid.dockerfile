FROM alpine AS base
FROM Base
