# check=experimental=InvalidDefinitionDescription
# not a description
ARG FOO=1
# BAR says what it is
ARG BAR
# wrong
FROM alpine AS base
# base is the base
FROM alpine AS final
