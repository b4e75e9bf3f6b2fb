# Debian's Redis, for machines that cannot pull one.
ARG DEBIAN
FROM $DEBIAN
RUN groupadd --system --gid 999 redis && useradd --system --uid 999 --gid 999 --home-dir /data redis \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends redis-server redis-tools \
    && apt-get clean && rm -rf /var/lib/apt/lists/* \
    && mkdir -p /data && chown 999:999 /data
WORKDIR /data
USER 999:999
EXPOSE 6379
# The arguments of the public image, so that one manifest fits both.
CMD ["redis-server", "--protected-mode", "no"]
