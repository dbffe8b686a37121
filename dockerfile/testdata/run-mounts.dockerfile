FROM busybox AS other
RUN x
FROM alpine
WORKDIR /w
ARG CACHE=gomod
RUN --mount=target=/ctx --mount=type=bind,source=sub,target=rel,rw a
RUN --mount=type=bind,from=other,source=/lib,target=/lib2 --mount=from=nginx,target=/n b
RUN --mount=type=cache,target=/root/.cache c
RUN --mount=type=cache,id=$CACHE,target=/go,sharing=locked,mode=0700,uid=1,gid=2,from=other,source=/seed,ro d
RUN --mount=type=tmpfs,target=/t,size=64m e
RUN --mount=type=secret,id=tok --mount=type=secret,id=f,target=/etc/f,required,mode=0444,uid=5,gid=6 f
RUN --mount=type=secret,id=tok,env=TOKEN echo $TOKEN
RUN --mount=type=secret,id=both,env=B,target=/b g
RUN --mount=type=ssh --mount=type=ssh,id=two,target=/sock,required,mode=0666 h
