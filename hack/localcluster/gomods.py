"""Programs built from Go modules: where each comes from and how it is compiled.

A published module that names no sibling by path is built where the module cache holds it, with its own go.mod
and go.sum. One that does has a folder under gomods/, with a go.sum that pins every module.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from localcluster.settings import GOMODS, Settings
from localcluster.shell import MissingRequirementError, StepError, answer, run
from localcluster.steps import Step, content_hash

KUBERNETES_VERSION = "v1.35.4"
KUBERNETES_PROGRAMS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubeadm",
    "kubectl",
)
OLDEST_GO = (1, 26, 4)
KIND_MODULE = "sigs.k8s.io/kind@v0.33.0"


@dataclass(frozen=True)
class GoProgram:
    """One or several main packages of one module, compiled together."""

    name: str
    version: str
    module: str = ""
    """`path@version` of a published module; empty where gomods/<name> is the main module."""
    packages: tuple[str, ...] = (".",)
    outputs: tuple[str, ...] = ()
    """File names of the programs, where they are not just the name."""
    tags: str = ""
    variables: tuple[str, ...] = ()
    """`package.name=value` set at link time."""

    @property
    def programs(self) -> tuple[str, ...]:
        return self.outputs or (self.name,)

    @property
    def ldflags(self) -> str:
        return " ".join(("-s -w", *(f"-X {variable}" for variable in self.variables)))

    def hash(self) -> str:
        return content_hash(repr(self), *([] if self.module else [GOMODS / self.name]))

    def folder(self, settings: Settings) -> Path:
        return settings.products / f"{self.name}-{self.version}-{self.hash()}"

    def path(self, settings: Settings, program: str = "") -> Path:
        return self.folder(settings) / (program or self.programs[0])


KUBERNETES = GoProgram(
    "kubernetes",
    KUBERNETES_VERSION,
    variables=tuple(
        f"k8s.io/component-base/version.{name}"
        for name in (f"gitVersion={KUBERNETES_VERSION}", "gitMajor=1", "gitMinor=35", "gitTreeState=clean")
    ),
)
ETCD = GoProgram("etcd", "v3.6.6")
COREDNS = GoProgram("coredns", "v1.13.1")
CONTAINERD = GoProgram(
    "containerd",
    "v2.3.4",
    module="github.com/containerd/containerd/v2@v2.3.4",
    packages=("./cmd/containerd", "./cmd/containerd-shim-runc-v2", "./cmd/ctr"),
    outputs=("containerd", "containerd-shim-runc-v2", "ctr"),
    tags="no_aufs no_zfs no_btrfs no_devmapper",
    variables=("github.com/containerd/containerd/v2/version.Version=v2.3.4",),
)
CNI_PLUGINS = GoProgram(
    "cni-plugins",
    "v1.9.1",
    module="github.com/containernetworking/plugins@v1.9.1",
    packages=(
        "./plugins/ipam/host-local",
        "./plugins/main/loopback",
        "./plugins/main/ptp",
        "./plugins/meta/portmap",
    ),
    outputs=("host-local", "loopback", "ptp", "portmap"),
)
LOCAL_PATH_PROVISIONER = GoProgram(
    "local-path-provisioner", "v0.0.30", module="github.com/rancher/local-path-provisioner@v0.0.30"
)
METRICS_SERVER = GoProgram(
    "metrics-server", "v0.9.0", module="sigs.k8s.io/metrics-server@v0.9.0", packages=("./cmd/metrics-server",)
)
VERSITYGW = GoProgram(
    "versitygw", "v1.8.0", module="github.com/versity/versitygw@v1.8.0", packages=("./cmd/versitygw",)
)
KIND = GoProgram("kind", "v0.33.0", module=KIND_MODULE)
HELM = GoProgram(
    "helm",
    "v3.22.0",
    module="helm.sh/helm/v3@v3.22.0",
    packages=("./cmd/helm",),
    # What Helm takes for the cluster's version when it renders without a cluster.
    variables=(
        "helm.sh/helm/v3/internal/version.version=v3.22.0",
        "helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1",
        "helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=35",
    ),
)
KWOK = GoProgram(
    "kwok",
    "v0.8.0",
    module="sigs.k8s.io/kwok@v0.8.0",
    packages=("./cmd/kwok", "./cmd/kwokctl"),
    outputs=("kwok", "kwokctl"),
)
KUBERAY = GoProgram(
    "kuberay",
    "v1.5.1",
    module="github.com/ray-project/kuberay/ray-operator@v1.5.1",
)
ARGO_ROLLOUTS = GoProgram(
    "argo-rollouts",
    "v1.10.1",
    module="github.com/argoproj/argo-rollouts@v1.10.1",
    packages=("./cmd/rollouts-controller",),
)
PROMETHEUS = GoProgram(
    "prometheus",
    "v0.315.0",
    module="github.com/prometheus/prometheus@v0.315.0",
    packages=("./cmd/promtool", "./cmd/prometheus"),
    outputs=("promtool", "prometheus"),
    tags="remove_all_sd",  # their clients are most of what there is to compile
)
PROMETHEUS_ADAPTER = GoProgram(
    "prometheus-adapter",
    "v0.12.0",
    module="sigs.k8s.io/prometheus-adapter@v0.12.0",
    packages=("./cmd/adapter",),
)

NODE_PROGRAMS = (
    KUBERNETES,
    ETCD,
    COREDNS,
    CONTAINERD,
    CNI_PLUGINS,
    LOCAL_PATH_PROVISIONER,
    METRICS_SERVER,
    VERSITYGW,
)
TOOLS = {
    program: recipe
    for recipe in (KIND, HELM, KWOK, KUBERAY, ARGO_ROLLOUTS, PROMETHEUS, PROMETHEUS_ADAPTER, VERSITYGW)
    for program in recipe.programs
}


def go_command() -> str:
    """The Go compiler.

    Raises:
        MissingRequirementError: none is on PATH or where its installer puts it.

    """
    found = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if not found:
        raise MissingRequirementError(
            "no Go compiler, and no image registry to pull from instead",
            hint="Install Go 1.26.4 or newer (https://go.dev/dl), or make an image registry reachable.",
        )
    return found


def require_go() -> None:
    """Raises:
    MissingRequirementError: there is no Go compiler, or one older than the modules ask for.

    """
    # An older Go may fetch a newer one where GOTOOLCHAIN allows that: the one at work here is what counts.
    version = (answer([go_command(), "env", "GOVERSION"]) or "").strip().removeprefix("go")
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if found < OLDEST_GO:
        wanted = ".".join(map(str, OLDEST_GO))
        raise MissingRequirementError(
            f"Go {version or '(unknown)'} is too old to build what cannot be pulled",
            hint=f"Install Go {wanted} or newer (https://go.dev/dl), or make an image registry reachable.",
        )


def module_folder(module: str) -> Path:
    """Where the module cache holds a published module, fetched if need be."""
    described = answer([go_command(), "mod", "download", "-json", module], timeout=300)
    if described is None:
        raise StepError(
            f"cannot fetch the Go module {module}",
            hint="See what `go env GOPROXY` names, and whether it is reachable.",
        )
    return Path(json.loads(described)["Dir"])


def build(program: GoProgram, settings: Settings, log: Path) -> None:
    """Compiles into a folder of its own name; the folder appears only when it is complete."""
    source = module_folder(program.module) if program.module else GOMODS / program.name
    folder = program.folder(settings)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # -mod=readonly also where a module ships a vendor folder, which published modules do only in part.
    flags = [
        "-mod=readonly",
        "-trimpath",
        "-buildvcs=false",
        f"-tags={program.tags}",
        f"-ldflags={program.ldflags}",
    ]
    # A folder, where the packages' own names are wanted.
    output = f"{partial}/" if program.outputs else str(partial / program.name)
    run(
        [go_command(), "build", "-C", source, *flags, "-o", output, *program.packages],
        log=log,
        env={"CGO_ENABLED": "0", "GOWORK": "off"},  # a go.work names siblings that are not published
        hint="A failed download is worth a second try: what was compiled is kept.",
    )
    os.replace(partial, folder)


def build_step(program: GoProgram, settings: Settings) -> Step:
    return Step(
        f"compile {program.name} {program.version}",
        lambda: program.folder(settings).is_dir(),
        lambda log: build(program, settings, log),
    )


def link(settings: Settings, name: str, target: Path) -> Path:
    """A name in the tools' folder that leads to a built program."""
    path = settings.bin / name
    if not path.is_symlink() or path.readlink() != target:
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    return path
