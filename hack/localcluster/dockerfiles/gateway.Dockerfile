# Envoy Gateway's control plane and Envoy, each chosen by the command that a pod names.
ARG BASE
FROM $BASE
COPY envoy-gateway envoy /usr/local/bin/
USER 65532:65532
