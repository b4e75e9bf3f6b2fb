"""The kind node image: pulled where a registry has it, else built from Go modules and Debian packages.

The built one follows kind's own images/base/Dockerfile, with the files of kind's module, and holds the
image of every component, so that a cluster of it pulls nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localcluster import debian, docker, gomods
from localcluster.gomods import GoProgram
from localcluster.settings import DOCKERFILES, MANIFESTS, PACKAGE, Settings
from localcluster.shell import MissingRequirementError, StepError, answer, run, succeeds, wait_until
from localcluster.steps import Step, content_hash

PULLED = f"kindest/node:{gomods.KUBERNETES_VERSION}"
RUNTIME = PACKAGE / "runtime"
RECIPE = "1"
"""Raised with every change of what this module puts into the image."""
PAUSE = GoProgram("pause", "v1")
PROGRAMS = (*gomods.NODE_PROGRAMS, PAUSE)

METRICS_SERVER_IMAGE = f"registry.k8s.io/metrics-server/metrics-server:{gomods.METRICS_SERVER.version}"
VERSITYGW_IMAGE = f"docker.io/versity/versitygw:{gomods.VERSITYGW.version}"
LOCAL_PATH_IMAGE = f"ratchet.dev/local-path-provisioner:{gomods.LOCAL_PATH_PROVISIONER.version}"
LOCAL_PATH_HELPER_IMAGE = f"ratchet.dev/local-path-helper:{gomods.LOCAL_PATH_PROVISIONER.version}"


@dataclass(frozen=True)
class NodeImage:
    name: str
    built: bool
    """Built here: with a pod network of its own in place of kind's."""


def recipe_hash() -> str:
    return content_hash(
        *(program.hash() for program in PROGRAMS),
        debian.image(),
        gomods.KIND_MODULE,
        RUNTIME,
        DOCKERFILES / "node.Dockerfile",
        DOCKERFILES / "kube-proxy.Dockerfile",
        MANIFESTS / "default-storage.yaml",
        RECIPE,
    )


def built_name() -> str:
    return f"ratchet-build/kind-node:{gomods.KUBERNETES_VERSION}-{recipe_hash()}"


def choose() -> NodeImage | None:
    """The node image that the engine holds or a registry offers; None where it must be built."""
    if docker.image_exists(PULLED):
        return NodeImage(PULLED, built=False)
    if shutil.which("apt-get") and docker.image_exists(built_name()):
        return NodeImage(built_name(), built=True)
    match docker.ask_registry(PULLED):
        case docker.Offer.YES:
            return NodeImage(PULLED, built=False)
        case docker.Offer.NO:
            # kind itself then picks the image that it was released with.
            return NodeImage("", built=False)
        case docker.Offer.UNREACHABLE:
            return None


def require_buildable() -> None:
    """Says before any long work when the node image must be built and cannot be.

    Raises:
        MissingRequirementError: with what is missing and how to get it.

    """
    require_permitted()
    gomods.require_go()


def require_permitted() -> None:
    """The part of `require_buildable` that `make setup` can't help with.

    Raises:
        MissingRequirementError: with what is missing and how to get it.

    """
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise MissingRequirementError(
            "no image registry is reachable, and building the node image takes root and apt-get",
            hint=f"Make a registry reachable, so that `docker pull {PULLED}` works, or be root on Debian.",
        )


def pull_steps(image: NodeImage) -> list[Step]:
    if image.built or not image.name:
        return []
    return [
        Step(
            "pull the node image",
            lambda: docker.image_exists(image.name),
            lambda log: docker.pull(image.name, log),
        )
    ]


def build_steps(settings: Settings) -> list[Step]:
    """Every step from nothing to the node image."""
    return [
        *(gomods.build_step(program, settings) for program in PROGRAMS),
        debian.step(settings),
        Step(
            "make the node's root file system",
            lambda: docker.image_exists(_root_name()),
            lambda log: _build_root(settings, log),
        ),
        Step(
            "make the node image",
            lambda: docker.image_exists(built_name()),
            lambda log: _build_image(settings, log),
        ),
    ]


def _root_name() -> str:
    return f"ratchet-build/kind-node-root:{recipe_hash()}"


def component_images(settings: Settings) -> Mapping[str, str]:
    """Kubeadm's own list, by the last part of each name, such as kube-apiserver, etcd or pause.

    Raises:
        StepError: the built kubeadm does not answer.

    """
    kubeadm = gomods.link(settings, "kubeadm", gomods.KUBERNETES.path(settings))
    listed = answer([kubeadm, "config", "images", "list", "--kubernetes-version", gomods.KUBERNETES_VERSION])
    if not listed:
        raise StepError("the built kubeadm does not list its images")
    return {line.rpartition("/")[2].partition(":")[0]: line for line in listed.split()}


def _build_root(settings: Settings, log: Path) -> None:
    files = gomods.module_folder(gomods.KIND_MODULE) / "images/base/files"
    with tempfile.TemporaryDirectory(prefix="ratchet-node-") as folder:
        empty, version = Path(folder) / "empty.yaml", Path(folder) / "version"
        empty.write_text("")
        # kind reads the whole file as the version, so no newline.
        version.write_text(gomods.KUBERNETES_VERSION)
        programs = {
            **{
                f"rootfs/usr/local/bin/{name}": gomods.CONTAINERD.path(settings, name)
                for name in gomods.CONTAINERD.programs
            },
            **{
                f"rootfs/opt/cni/bin/{name}": gomods.CNI_PLUGINS.path(settings, name)
                for name in gomods.CNI_PLUGINS.programs
            },
            "rootfs/usr/local/bin/kubernetes": gomods.KUBERNETES.path(settings),
        }
        docker.build_from_files(
            _root_name(),
            DOCKERFILES / "node.Dockerfile",
            {
                **{f"kind-files/{name}": files / name for name in ("usr", "kind", "etc")},
                **programs,
                "rootfs/usr/local/bin/bounded-runc": RUNTIME / "bounded-runc",
                "rootfs/etc/containerd/cni.toml": RUNTIME / "cni.toml",
                "rootfs/etc/containerd/cni.conflist.template": RUNTIME / "cni.conflist.template",
                "rootfs/etc/systemd/system/service-range.service": RUNTIME / "service-range.service",
                "rootfs/kind/version": version,
                "rootfs/kind/manifests/default-cni.yaml": empty,
                "rootfs/kind/manifests/default-storage.yaml": MANIFESTS / "default-storage.yaml",
            },
            log=log,
            arguments={"DEBIAN": debian.image(), "PAUSE_IMAGE": component_images(settings)["pause"]},
        )


def _make_components(settings: Settings, log: Path) -> list[str]:
    """The image of every component, under the very name that its manifest asks for."""
    listed = component_images(settings)
    # One image for the three static pods: they name the program they run, and share one file of 200 MB.
    control_plane = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
    docker.pack(
        [listed[name] for name in control_plane],
        {"/usr/local/bin/kubernetes": gomods.KUBERNETES.path(settings)},
        links={f"/usr/local/bin/{name}": "kubernetes" for name in control_plane},
        log=log,
    )
    static = {
        listed["etcd"]: (gomods.ETCD, "/usr/local/bin/etcd"),
        listed["coredns"]: (gomods.COREDNS, "/coredns"),
        listed["pause"]: (PAUSE, "/pause"),
        METRICS_SERVER_IMAGE: (gomods.METRICS_SERVER, "/metrics-server"),
        VERSITYGW_IMAGE: (gomods.VERSITYGW, "/usr/local/bin/versitygw"),
        LOCAL_PATH_IMAGE: (gomods.LOCAL_PATH_PROVISIONER, "/usr/local/bin/local-path-provisioner"),
    }
    for image, (program, path) in static.items():
        docker.pack([image], {path: program.path(settings)}, entrypoint=path, log=log)
    docker.build_from_files(
        listed["kube-proxy"],
        DOCKERFILES / "kube-proxy.Dockerfile",
        {"kubernetes": gomods.KUBERNETES.path(settings)},
        log=log,
        arguments={"DEBIAN": debian.image()},
    )
    run(["docker", "tag", debian.image(), LOCAL_PATH_HELPER_IMAGE], log=log)
    return [
        *listed.values(),
        *(image for image in static if image not in listed.values()),
        LOCAL_PATH_HELPER_IMAGE,
    ]


def _build_image(settings: Settings, log: Path) -> None:
    """Loads the component images into a running node's containerd and commits the result."""
    images = _make_components(settings, log)
    container = "ratchet-build-kind-node"
    started = ["docker", "run", "--detach", "--privileged", "--network=none", f"--name={container}"]
    started.append("--entrypoint=/bin/sleep")
    run(["docker", "rm", "--force", container], log=log)
    try:
        run(
            [*started, _root_name(), "infinity"],
            log=log,
        )
        inside = ["docker", "exec", container]
        run(["docker", "exec", "--detach", container, "containerd"], log=log)
        if not wait_until(lambda: succeeds([*inside, "ctr", "version"]), seconds=60):
            raise StepError("containerd does not start in the node's root file system", log=log)
        saved = subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE)
        run(
            [
                "docker",
                "exec",
                "--interactive",
                container,
                "ctr",
                "-n",
                "k8s.io",
                "images",
                "import",
                "--no-unpack",
                "-",
            ],
            stdin=saved.stdout,
            log=log,
        )
        if saved.wait() != 0:
            raise StepError("docker could not save the component images", log=log)
        run([*inside, "pkill", "-TERM", "-x", "containerd"], log=log)
        if not wait_until(lambda: not succeeds([*inside, "pgrep", "-x", "containerd"]), seconds=30):
            raise StepError("containerd does not stop", log=log)
        entrypoint = 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]'
        changes = [f"--change={change}" for change in (entrypoint, "CMD []")]
        run(["docker", "commit", *changes, container, built_name()], log=log)
    finally:
        run(["docker", "rm", "--force", container], log=log)
