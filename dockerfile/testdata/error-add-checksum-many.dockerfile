FROM scratch
ADD --checksum=abc https://h/a https://h/b /
