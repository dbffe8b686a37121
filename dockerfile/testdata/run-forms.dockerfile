FROM alpine
RUN echo $HOME "a  b" \
  && echo two
RUN ["echo", "exec $HOME"]
RUN <<EOT
set -e
echo heredoc $X
EOT
RUN <<-EOT
	chomped
EOT
RUN <<EOT
#!/usr/bin/env python3
print(1)
EOT
RUN cat <<A > /a; cat <<B > /b
one
A
two
B
SHELL ["/bin/bash", "-c"]
RUN echo bash
