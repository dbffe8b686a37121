#! network host
FROM alpine
RUN --network=none a
RUN --network=host b
RUN --network=default c
RUN --security=insecure d
RUN --security=sandbox e
RUN --device=vendor.com/dev=x,required --device=vendor.com/opt=y f
