#! arg SOURCE_DATE_EPOCH=repo
#! context repo=https://github.com/a/b.git
FROM scratch
LABEL a=b
