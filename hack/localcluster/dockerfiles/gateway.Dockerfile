# Envoy Gateway's control plane, and Envoy for pods that name it as their command.
ARG BASE
FROM $BASE
COPY envoy-gateway envoy /usr/local/bin/
USER 65532:65532
ENTRYPOINT ["envoy-gateway"]
