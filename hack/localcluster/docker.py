"""Images in the Docker engine: found, pulled, built from a Dockerfile, or packed from single files."""

from __future__ import annotations

import enum
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from localcluster.shell import answer, run, succeeds

PULL_SECONDS = 600
PROBE_SECONDS = 20


def image_id(image: str) -> str | None:
    """The digest of an image's configuration, or None where the engine has no such image."""
    found = answer(["docker", "image", "inspect", "--format", "{{.Id}}", image])
    return found.strip() if found else None


def image_exists(image: str) -> bool:
    return image_id(image) is not None


class Offer(enum.Enum):
    """What a registry says of an image."""

    YES = "yes"
    NO = "no"
    UNREACHABLE = "unreachable"


def ask_registry(image: str) -> Offer:
    """Asked with a short timeout: where no registry is reachable, little is lost by asking."""
    try:
        asked = subprocess.run(
            ["docker", "manifest", "inspect", image],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Offer.UNREACHABLE
    if asked.returncode == 0:
        return Offer.YES
    return (
        Offer.NO
        if "no such manifest" in asked.stderr or "manifest unknown" in asked.stderr
        else Offer.UNREACHABLE
    )


def pull(image: str, log: Path) -> None:
    run(["docker", "pull", "--quiet", image], log=log, timeout=PULL_SECONDS)


def builder_environment() -> Mapping[str, str]:
    """The old builder where there is no buildx: the client alone cannot build otherwise."""
    return {} if succeeds(["docker", "buildx", "version"]) else {"DOCKER_BUILDKIT": "0"}


def build(
    tag: str,
    dockerfile: Path,
    context: Path | IO[bytes],
    *,
    log: Path,
    arguments: Mapping[str, str] | None = None,
    hint: str = "",
) -> None:
    """`docker build` on the machine's own network, since a package index may be reachable only from there.

    The context is a folder, or an archive in which the Dockerfile's path is found.
    """
    words: list[str | os.PathLike[str]] = [
        "docker",
        "build",
        "--network=host",
        "--tag",
        tag,
        "--file",
        dockerfile,
    ]
    for name, value in (arguments or {}).items():
        words += ["--build-arg", f"{name}={value}"]
    folder, archive = (context, None) if isinstance(context, Path) else ("-", context)
    run([*words, folder], log=log, env=builder_environment(), stdin=archive, hint=hint)


def build_from_files(
    tag: str,
    dockerfile: Path,
    files: Mapping[str, Path],
    *,
    log: Path,
    arguments: Mapping[str, str] | None = None,
) -> None:
    """A build whose context is just the named files, each at its path in the context."""
    with tempfile.TemporaryDirectory(prefix="ratchet-context-") as folder:
        context = Path(folder)
        for name, source in files.items():
            target = context / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy2(source, target)
        shutil.copy2(dockerfile, context / "Dockerfile")
        build(tag, context / "Dockerfile", context, log=log, arguments=arguments)


def pack(
    tags: Sequence[str],
    files: Mapping[str, Path],
    *,
    log: Path,
    entrypoint: str = "",
    links: Mapping[str, str] | None = None,
) -> None:
    """An image of single static files, all executable, under one or several tags."""
    changes = [
        "ENV PATH=/usr/local/bin:/usr/bin:/bin",
        *([f'ENTRYPOINT ["{entrypoint}"]'] if entrypoint else []),
    ]
    with tempfile.NamedTemporaryFile(suffix=".tar") as packed:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name in _parents([*files, *(links or {})]):
                folder = tarfile.TarInfo(name)
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(folder)
            for name, source in files.items():
                entry = tarfile.TarInfo(name.lstrip("/"))
                entry.size, entry.mode = source.stat().st_size, 0o755
                with source.open("rb") as content:
                    archive.addfile(entry, content)
            for name, target in (links or {}).items():
                entry = tarfile.TarInfo(name.lstrip("/"))
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                archive.addfile(entry, io.BytesIO())
            # Some programs make temporary files even where nothing is mounted there.
            scratch = tarfile.TarInfo("tmp")
            scratch.type, scratch.mode = tarfile.DIRTYPE, 0o1777
            archive.addfile(scratch)
        packed.flush()
        first, *others = tags
        words = ["docker", "import"]
        for change in changes:
            words += ["--change", change]
        run([*words, packed.name, first], log=log)
    for tag in others:
        run(["docker", "tag", first, tag], log=log)


def _parents(names: Sequence[str]) -> list[str]:
    found = {str(parent) for name in names for parent in Path(name.lstrip("/")).parents if str(parent) != "."}
    return sorted(found)
