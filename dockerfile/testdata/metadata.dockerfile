FROM lived
MAINTAINER me <me@example.com>
LABEL b=2 a=3
EXPOSE 80 443/tcp 53/UDP 8000-8002 127.0.0.1:90:91
VOLUME ["/data", "/x y"]
VOLUME /a /b
USER 1000:1000
STOPSIGNAL 9
HEALTHCHECK --interval=5s --timeout=3s --start-period=1s --start-interval=1s --retries=2 CMD curl -f http://localhost || exit 1
SHELL ["/bin/zsh", "-c"]
CMD echo hi
ENTRYPOINT run it
