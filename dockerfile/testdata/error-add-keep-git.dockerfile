FROM scratch
ADD --keep-git-dir=false https://h/r.git?keep-git-dir=1 /
