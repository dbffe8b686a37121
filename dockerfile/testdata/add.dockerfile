FROM alpine
ADD local.tar.gz /l/
ADD --unpack=false local.tar.gz /l/
ADD https://example.com/dir/file.txt https://example.com/ /d/
ADD --checksum=sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa --chmod=755 https://example.com/a /a
ADD --unpack https://example.com/a.tar.gz /u
ADD https://github.com/user/repo.git#v1:docs /docs
ADD --keep-git-dir=true --checksum=0123456789012345678901234567890123456789 git@github.com:user/repo.git /r
ADD --exclude=x . /e
ADD <<EOT /doc
text
EOT
