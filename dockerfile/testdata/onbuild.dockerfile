FROM busybox AS tools
RUN install tool
FROM onbuild AS app
RUN after
ONBUILD RUN child trigger
ONBUILD COPY <<EOT /f
hello
EOT
FROM app
RUN last
