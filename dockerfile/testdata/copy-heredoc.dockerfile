FROM alpine
ARG V=1
COPY <<one <<"two" /etc/
v=$V
one
raw=$V
two
COPY --chmod=600 --chown=app file <<-three /x/
	tabs
three
