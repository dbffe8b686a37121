FROM alpine
ARG A=abcabc E= P=/usr/local/lib.tar.gz
ENV U=${UNSET} D=${UNSET:-def} S=${A:+set} N=${E:-empty} K=${E-keep} Q='$A' R="$A" X=\$A
ENV PRE=${P#*/} PREL=${P##*/} SUF=${P%.*} SUFL=${P%%.*} REP=${A/b/X} REPA=${A//b/X}
LABEL l="${A}d" m=$A
USER ${A}
WORKDIR /${A}
EXPOSE ${UNSET:-80}
VOLUME /$A
STOPSIGNAL ${UNSET:-SIGINT}
COPY $A ./${A}/
