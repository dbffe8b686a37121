# check=skip=MaintainerDeprecated,StageNameCasing
FROM alpine AS Build
MAINTAINER me
CMD x
# check=skip=JSONArgsRecommended
ENTRYPOINT y
