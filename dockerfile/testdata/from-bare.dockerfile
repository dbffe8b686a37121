FROM bare
COPY a /
