"""A minimal Debian root as a Docker image, made from the sources that this machine's apt uses."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from localcluster.docker import image_exists
from localcluster.settings import Settings
from localcluster.shell import MissingRequirementError, StepError, answer, run
from localcluster.steps import Step, content_hash

NEEDS = ("debootstrap",)


def release() -> str:
    """The code name of this machine's distribution, such as bookworm."""
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise MissingRequirementError(
        "this system has no Debian release name", hint="Make an image registry reachable instead."
    )


def sources() -> tuple[str, ...]:
    """Apt's own lines, `URI suite component…`, of the distribution alone: third parties' sources stay out."""
    listed = answer(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    )
    components: dict[tuple[str, str], list[str]] = {}
    name = release()
    for line in (listed or "").splitlines():
        uri, suite, component = line.split()
        if suite == name or (
            suite.startswith(f"{name}-") and suite.removeprefix(f"{name}-") in {"updates", "security"}
        ):
            components.setdefault((uri, suite), []).append(component)
    if not any(suite == name for _, suite in components):
        raise MissingRequirementError(
            f"apt names no source for {name}",
            hint="`apt-get indextargets` must list one: see /etc/apt/sources.list.d.",
        )
    return tuple(
        f"{uri} {suite} {' '.join(dict.fromkeys(found))}" for (uri, suite), found in components.items()
    )


def image() -> str:
    return f"ratchet-build/debian:{release()}-{content_hash(*sources())}"


def build(settings: Settings, log: Path) -> None:
    """Debootstrap to a folder, then `docker import`; the folder is not kept."""
    if os.geteuid() != 0:
        raise MissingRequirementError(
            "making a Debian root takes root", hint="Run this as root, or make an image registry reachable."
        )
    if not shutil.which("debootstrap"):
        run(["apt-get", "install", "--yes", "--no-install-recommends", *NEEDS], log=log)
    name, lines = release(), sources()
    mirror = next(line.split()[0] for line in lines if line.split()[1] == name)
    root = settings.home / "debian-root"
    remove_root(root)
    run(
        ["debootstrap", "--variant=minbase", name, root, mirror],
        log=log,
        hint="The Debian mirror did not answer in full.",
    )
    (root / "etc/apt/sources.list").write_text("".join(f"deb {line}\n" for line in lines))
    for cached in (root / "var/cache/apt/archives").glob("*.deb"):
        cached.unlink()
    # Names of this machine's network have no place in an image.
    for file in ("etc/resolv.conf", "etc/hostname"):
        (root / file).write_text("")
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    packed = subprocess.Popen(
        ["tar", "--create", "--numeric-owner", "--exclude=./dev/*", f"--directory={root}", "."],
        stdout=subprocess.PIPE,
    )
    run(
        ["docker", "import", "--change", f"ENV {path}", "--change", 'CMD ["/bin/bash"]', "-", image()],
        log=log,
        stdin=packed.stdout,
    )
    if packed.wait() != 0:
        raise StepError("tar could not read the Debian root", log=log)
    remove_root(root)


def remove_root(root: Path) -> None:
    """Debootstrap leaves proc and sys mounted when it is interrupted."""
    for mount in ("proc", "sys"):
        if (root / mount).is_mount():
            run(["umount", root / mount])
    if root.exists():
        shutil.rmtree(root)


def step(settings: Settings) -> Step:
    return Step(
        f"make a Debian {release()} root", lambda: image_exists(image()), lambda log: build(settings, log)
    )
