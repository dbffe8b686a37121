FROM scratch
ADD --chown=1000 <<a <<b /dir/
x
a
y
b
