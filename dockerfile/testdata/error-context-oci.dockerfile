#! context base=oci-layout://store:latest
FROM base
