#! platform windows/amd64
# escape=`
FROM scratch
WORKDIR C:\app
COPY a\b c\
CMD run
