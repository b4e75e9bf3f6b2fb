# The stand-in for python:3.11-slim-bookworm, with the certificate authorities that this machine trusts.
ARG DEBIAN
FROM $DEBIAN
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
      ca-certificates netbase python3 python3-venv python-is-python3 tzdata \
    && apt-get clean && rm -rf /var/lib/apt/lists/* \
    # As in the image it stands in for, packages may be installed beside the interpreter's own.
    && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV LANG=C.UTF-8 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt \
    PIP_DISABLE_PIP_VERSION_CHECK=1
CMD ["python3"]
