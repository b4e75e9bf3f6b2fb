# A kind node's root file system: Debian with systemd, then what kind's own images/base/Dockerfile does.
ARG DEBIAN
FROM $DEBIAN

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
      systemd systemd-sysv dbus \
      conntrack iptables nftables iproute2 ethtool util-linux mount kmod ipset ebtables socat \
      libseccomp2 pigz e2fsprogs runc \
      bash ca-certificates curl jq procps \
    && apt-get clean && rm -rf /var/lib/apt/lists/* \
    && find /lib/systemd/system/sysinit.target.wants/ -name systemd-tmpfiles-setup.service -delete \
    && rm -f /lib/systemd/system/multi-user.target.wants/* /etc/systemd/system/*.wants/* \
      /lib/systemd/system/local-fs.target.wants/* /lib/systemd/system/sockets.target.wants/*udev* \
      /lib/systemd/system/sockets.target.wants/*initctl* /lib/systemd/system/basic.target.wants/* \
    && echo "ReadKMsg=no" >>/etc/systemd/journald.conf

COPY kind-files/ /
COPY rootfs/ /

# The container runtime: the wrapped runc, the pause image of this Kubernetes, and the pod network that containerd
# itself sets up from the node's pod range.
ARG PAUSE_IMAGE
RUN mkdir -p /etc/cni/net.d /etc/kubernetes/manifests \
    && chmod -R u=rwX,go=rX /kind /etc/containerd /etc/cni /etc/systemd/system && chmod 0755 /kind/bin/* /usr/local/bin/* /opt/cni/bin/* \
    && ln -sf /usr/local/bin/kubernetes /usr/bin/kubeadm \
    && ln -sf /usr/local/bin/kubernetes /usr/bin/kubelet \
    && ln -sf /usr/local/bin/kubernetes /usr/bin/kubectl \
    && sed -i -e 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' \
      -e "s#sandbox_image = .*#sandbox_image = \"$PAUSE_IMAGE\"#" \
      -e 's#\( *\)SystemdCgroup = true#&\n\1BinaryName = "/usr/local/bin/bounded-runc"#' /etc/containerd/config.toml \
    && cat /etc/containerd/cni.toml >>/etc/containerd/config.toml \
    && ctr oci spec \
      | jq '.hooks.createContainer[.hooks.createContainer | length] |= . + {"path": "/kind/bin/mount-product-files.sh"} | del(.process.rlimits)' \
      >/etc/containerd/cri-base.json \
    && systemctl enable kubelet.service containerd.service undo-mount-hacks.service service-range.service \
    && systemctl mask systemd-binfmt.service

ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]
