"""Images from the engine into a node's containerd, sending only the layers that the node does not hold.

`docker save` writes every layer. This repacks what it wrote as an OCI image layout in which blobs that the
node already has are named and not repeated; containerd takes them from its own store.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from localcluster.shell import StepError, answer, run

NAMESPACE = "k8s.io"
OCI = "application/vnd.oci.image"
COMPRESSION = {b"\x1f\x8b": "+gzip", b"\x28\xb5\x2f\xfd": "+zstd"}


@dataclass(frozen=True)
class Blob:
    media_type: str
    digest: str
    size: int

    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Layer:
    member: str
    """Its path in the saved archive."""
    blob: Blob


def ctr(node: str) -> list[str]:
    return ["docker", "exec", "--interactive", node, "ctr", f"--namespace={NAMESPACE}"]


def full_name(image: str) -> str:
    """As containerd names it: `redis:8` is docker.io/library/redis:8."""
    first, slash, _ = image.partition("/")
    if not slash:
        return f"docker.io/library/{image}"
    return image if "." in first or ":" in first or first == "localhost" else f"docker.io/{image}"


@contextlib.contextmanager
def saved(image: str, log: Path) -> Generator[tarfile.TarFile]:
    """The image as `docker save` writes it, open while the context lasts."""
    with tempfile.NamedTemporaryFile(prefix="ratchet-image-", suffix=".tar") as file:
        run(["docker", "save", "--output", file.name, image], log=log)
        with tarfile.open(file.name) as archive:
            yield archive


def send(archive: tarfile.TarFile, image: str, node: str, log: Path) -> None:
    """Imports a saved image into one node under its full name.

    Raises:
        StepError: containerd refused it.

    """
    held = set((answer([*ctr(node), "content", "list", "--quiet"]) or "").split())
    with log.open("ab") as output:
        importing = subprocess.Popen(
            [*ctr(node), "images", "import", "-"], stdin=subprocess.PIPE, stdout=output, stderr=output
        )
        # Where it goes away early, its exit status and the log tell why.
        with contextlib.suppress(BrokenPipeError), importing.stdin or io.BytesIO() as pipe:
            repack(archive, full_name(image), held, pipe)
    if importing.wait() != 0:
        raise StepError(f"{node} could not import {image}", log=log)


def repack(archive: tarfile.TarFile, name: str, held: Collection[str], output: IO[bytes]) -> None:
    """Writes an OCI image layout of a saved image to a stream, without the layers in `held`."""
    saved_manifest = json.loads(_read(archive, "manifest.json"))[0]
    config = _read(archive, saved_manifest["Config"])
    layers = [
        _layer(archive, member, diff_id)
        for member, diff_id in zip(
            saved_manifest["Layers"], json.loads(config)["rootfs"]["diff_ids"], strict=True
        )
    ]
    config_blob = _blob(f"{OCI}.config.v1+json", config)
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": config_blob.descriptor(),
            "layers": [layer.blob.descriptor() for layer in layers],
        }
    )
    manifest_blob = _blob(f"{OCI}.manifest.v1+json", manifest)
    index = {
        "schemaVersion": 2,
        "manifests": [{**manifest_blob.descriptor(), "annotations": {"io.containerd.image.name": name}}],
    }
    small: Mapping[str, bytes] = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json(index),
        _path(config_blob): config,
        _path(manifest_blob): manifest,
    }
    with tarfile.open(fileobj=output, mode="w|") as layout:
        for path, content in small.items():
            _add(layout, path, len(content), io.BytesIO(content))
        for layer in {layer.blob.digest: layer for layer in layers}.values():
            if layer.blob.digest not in held:
                _add(layout, _path(layer.blob), layer.blob.size, _open(archive, layer.member))


def _layer(archive: tarfile.TarFile, member: str, diff_id: str) -> Layer:
    """Engines name a layer's file by its digest, or write it uncompressed: then the diff id is its digest."""
    folder, _, digest = member.rpartition("/")
    content = _open(archive, member)
    start = content.read(4)
    compression = next((suffix for magic, suffix in COMPRESSION.items() if start.startswith(magic)), "")
    size = content.seek(0, io.SEEK_END)
    return Layer(
        member,
        Blob(
            f"{OCI}.layer.v1.tar{compression}",
            f"sha256:{digest}" if folder == "blobs/sha256" else diff_id,
            size,
        ),
    )


def _open(archive: tarfile.TarFile, member: str) -> IO[bytes]:
    content = archive.extractfile(member)
    if content is None:
        raise StepError(f"the saved image has no file {member}")
    return content


def _read(archive: tarfile.TarFile, member: str) -> bytes:
    return _open(archive, member).read()


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _blob(media_type: str, content: bytes) -> Blob:
    return Blob(media_type, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))


def _path(blob: Blob) -> str:
    return f"blobs/{blob.digest.replace(':', '/')}"


def _add(layout: tarfile.TarFile, path: str, size: int, content: IO[bytes]) -> None:
    entry = tarfile.TarInfo(path)
    entry.size = size
    layout.addfile(entry, content)
