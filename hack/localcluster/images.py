"""The project's images: what they build on, how they are built, and how they get into the cluster's nodes."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from localcluster import debian, docker, kindcluster, transfer, uv
from localcluster.settings import DOCKERFILES, Settings
from localcluster.shell import StepError, answer, run
from localcluster.steps import Step, content_hash


@dataclass(frozen=True)
class Recipe:
    """How one of the project's images is built."""

    dockerfile: str
    base: str | None = None
    """Another of these that it stands on; else Python's base image."""
    by_name: bool = False
    """It gets into the nodes only when it is asked for by its name."""


IMAGES: Mapping[str, Recipe] = {
    "operator": Recipe("Dockerfile.operator"),
    "trainer": Recipe("trainer_image/Dockerfile", base="torch"),
    "rollout": Recipe("rollout_image/Dockerfile"),
    "inference": Recipe("inference_image/Dockerfile"),
    "inference-torch": Recipe("inference_image/Dockerfile", base="torch", by_name=True),
    "torch": Recipe("Dockerfile.torch", by_name=True),
}
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# What says where packages come from; whichever the machine has set reaches the build under the same name.
PASSED_ON = (
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "UV_INDEX",
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)
LOADED_ID = "ratchet.dev/image-id"


@dataclass(frozen=True)
class BaseImage:
    """An image that a registry offers under one name and that can be built under another."""

    public: str
    built: str
    dockerfile: Path

    def files(self) -> Mapping[str, Path]:
        return (
            {"ca-certificates.crt": machine_certificates()}
            if "ca-certificates.crt" in self.dockerfile.read_text()
            else {}
        )

    def hash_tag(self) -> str:
        """A second tag of the built image, which tells whether it is of this recipe."""
        return f"{self.built}-{content_hash(debian.image(), self.dockerfile, *self.files().values())}"

    def present(self) -> bool:
        return docker.image_exists(self.public) or docker.image_exists(self.hash_tag())

    def name(self) -> str:
        return self.public if docker.image_exists(self.public) else self.built


PYTHON = BaseImage("python:3.11-slim-bookworm", "ratchet-base:py311", DOCKERFILES / "python.Dockerfile")
REDIS = BaseImage("redis:8", "ratchet-redis:7.0", DOCKERFILES / "redis.Dockerfile")


def machine_certificates() -> Path:
    """The certificate authorities that this machine trusts, a private package index's among them."""
    for path in (os.environ.get("SSL_CERT_FILE"), CERTIFICATES):
        if path and Path(path).is_file():
            return Path(path)
    raise StepError(
        "no bundle of certificate authorities",
        hint="Install ca-certificates, or name a bundle in SSL_CERT_FILE.",
    )


def base_images() -> Mapping[str, str]:
    return {"python": PYTHON.name(), "redis": REDIS.name()}


def base_steps(settings: Settings) -> list[Step]:
    return [
        Step(
            f"base image {base.public}", base.present, lambda log, base=base: _make_base(base, settings, log)
        )
        for base in (PYTHON, REDIS)
    ]


def _make_base(base: BaseImage, settings: Settings, log: Path) -> None:
    if docker.ask_registry(base.public) is docker.Offer.YES:
        docker.pull(base.public, log)
        return
    if not docker.image_exists(debian.image()):
        debian.build(settings, log)
    docker.build_from_files(
        base.built, base.dockerfile, base.files(), log=log, arguments={"DEBIAN": debian.image()}
    )
    run(["docker", "tag", base.built, base.hash_tag()], log=log)


def prepare_build_folder(settings: Settings, log: Path) -> None:
    """Puts into `.build/` what a Dockerfile may copy: wheels/ (maybe empty), uv, ca-certificates.crt."""
    folder = settings.build_folder
    (folder / "wheels").mkdir(parents=True, exist_ok=True)
    for wheel in _wheels(settings):
        _place(wheel, folder / "wheels" / wheel.name)
    _place(uv.binary(settings, log), folder / "uv")
    (folder / "uv").chmod(0o755)
    _place(machine_certificates(), folder / "ca-certificates.crt")


def empty_build_folder(settings: Settings) -> None:
    """Takes away what `prepare_build_folder` put there."""
    shutil.rmtree(settings.build_folder / "wheels", ignore_errors=True)
    for name in ("uv", "ca-certificates.crt"):
        (settings.build_folder / name).unlink(missing_ok=True)


def _wheels(settings: Settings) -> list[Path]:
    places = [
        Path(place)
        for place in os.environ.get("UV_FIND_LINKS", "").replace(",", " ").split()
        if "://" not in place
    ]
    places.append(settings.repository.parent / "shared" / "wheels")
    return [wheel for place in places if place.is_dir() for wheel in sorted(place.glob("*.whl"))]


def _place(source: Path, target: Path) -> None:
    """Copies a file where it is not there yet; the time of change decides, as for make."""
    have, want = target.stat() if target.exists() else None, source.stat()
    if have and (have.st_size, int(have.st_mtime)) == (want.st_size, int(want.st_mtime)):
        return
    # A copy and not a link: the source may be read-only, or on another file system.
    partial = target.with_name(target.name + ".partial")
    shutil.copy2(source, partial)
    os.replace(partial, target)


def build_step(name: str, settings: Settings) -> Step:
    # docker's own cache decides what has to be built again.
    return Step(f"build ratchet-{name}:dev", lambda: False, lambda log: build(name, settings, log))


def build(name: str, settings: Settings, log: Path) -> None:
    recipe = IMAGES[name]
    if not (settings.repository / recipe.dockerfile).is_file():
        raise StepError(f"{recipe.dockerfile} does not exist in the repository")
    if recipe.base:
        build(recipe.base, settings, log)
    prepare_build_folder(settings, log)
    before = docker.image_id(tag := image_name(name))
    arguments = {
        "BASE_IMAGE": image_name(recipe.base) if recipe.base else PYTHON.name(),
        **{key: os.environ[key] for key in PASSED_ON if os.environ.get(key)},
    }
    with tempfile.TemporaryFile(prefix="ratchet-context-") as context:
        write_context(settings, context)
        context.seek(0)
        docker.build(
            tag,
            Path(recipe.dockerfile),
            context,
            log=log,
            arguments=arguments,
            hint="The build uses the machine's network and the certificates in .build/ca-certificates.crt.",
        )
    if before not in (None, docker.image_id(tag)):
        # A day of builds would fill the disk. Where another image stands on it, Docker keeps it.
        answer(["docker", "image", "rm", before])


def write_context(settings: Settings, output: IO[bytes]) -> None:
    """The repository without what git ignores, and what `prepare_build_folder` put beside it.

    Environments and compiled caches would be a gigabyte in each build, and would spoil Docker's cache.
    """
    root = settings.repository
    listed = answer(["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    if listed is None:
        raise StepError(
            f"git does not list the files of {root}", hint="The images are built from a git checkout."
        )
    build_folder = settings.build_folder.relative_to(root)
    extra = [build_folder / name for name in ("wheels", "uv", "ca-certificates.crt")]
    # Docker looks at the first 512 bytes to tell an archive, and takes extended headers for something else.
    with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted({*filter(None, listed.split("\0")), *map(str, extra)}):
            # A tracked file may have been deleted since.
            if (root / name).exists():
                archive.add(root / name, arcname=name, filter=_owned_by_root)


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def loadable() -> list[str]:
    return [
        *(
            name
            for name, recipe in IMAGES.items()
            if not recipe.by_name and docker.image_exists(f"ratchet-{name}:dev")
        ),
        *(["redis"] if REDIS.present() else []),
    ]


def image_name(name: str) -> str:
    """`operator` and `redis` for short, or any image by its full name."""
    if name in IMAGES:
        return f"ratchet-{name}:dev"
    return REDIS.name() if name == "redis" else name


def load_step(name: str, settings: Settings) -> Step:
    image = image_name(name)
    return Step(
        f"load {image}", lambda: not _nodes_without(image, settings), lambda log: load(image, settings, log)
    )


def _nodes_without(image: str, settings: Settings) -> list[str]:
    """The nodes that do not hold this very build of the image.

    Raises:
        StepError: the engine does not have the image, or there is no cluster.

    """
    wanted = docker.image_id(image)
    if wanted is None:
        raise StepError(
            f"{image} is not built",
            hint="`hack/cluster build NAME` builds it, `hack/cluster base-images` the base images.",
        )
    nodes = kindcluster.containers(settings)
    if not nodes:
        raise StepError(f"there is no cluster {settings.cluster}", hint="`hack/cluster up` makes it.")
    return [node.name for node in nodes if f"{LOADED_ID}={wanted}" not in _node_image(node.name, image)]


def _node_image(node: str, image: str) -> str:
    """The node's line on the image, with its labels; empty where it has none."""
    return answer([*transfer.ctr(node), "images", "list", f"name=={transfer.full_name(image)}"]) or ""


def load(image: str, settings: Settings, log: Path) -> None:
    """Sends the image to each node without it, and marks there which build it is."""
    # Asked before saving: should the tag move meanwhile, the next load sees that the node's build is another.
    mark = f"{LOADED_ID}={docker.image_id(image)}"
    with transfer.saved(image, log) as archive:
        for node in _nodes_without(image, settings):
            transfer.send(archive, image, node, log)
            run([*transfer.ctr(node), "images", "label", transfer.full_name(image), mark], log=log)


def remove_built(log: Path) -> None:
    """Removes every image that this package made; pulled ones stay."""
    listed = answer(["docker", "images", "--format", "{{.Repository}}:{{.Tag}}"]) or ""
    own = [
        line
        for line in listed.split()
        if line.startswith(("ratchet-build/", "ratchet-base:", "ratchet-redis:", "ratchet.dev/"))
        or line in {f"ratchet-{name}:dev" for name in IMAGES}
    ]
    if own:
        run(["docker", "image", "rm", "--force", *own], log=log)
