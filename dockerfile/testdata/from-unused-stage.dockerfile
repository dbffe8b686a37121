FROM missing AS unused
RUN never
FROM alpine AS used
RUN once
FROM missing2
FROM used
