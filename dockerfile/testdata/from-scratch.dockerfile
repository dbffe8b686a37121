FROM scratch
LABEL only=metadata
