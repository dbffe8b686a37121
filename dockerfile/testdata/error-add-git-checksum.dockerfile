FROM scratch
ADD --checksum=abc https://h/r.git?commit=def /
