#! url https://github.com/user/repo.git?branch=dev&submodules=false#:sub
#! ignore *.o
#! arg BUILDKIT_CONTEXT_KEEP_GIT_DIR=1
#! arg SOURCE_DATE_EPOCH=context
#! subdir deep
FROM scratch
COPY . /
