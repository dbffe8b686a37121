#! ignore *.o docs
FROM scratch
COPY src /src
COPY docs /docs
ADD x.o .
RUN --mount=target=/ctx true
