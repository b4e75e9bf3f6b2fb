# kube-proxy calls iptables and conntrack, so unlike the other components it needs a root file system.
ARG DEBIAN
FROM $DEBIAN
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends conntrack ipset iptables kmod nftables \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
COPY kubernetes /usr/local/bin/kube-proxy
