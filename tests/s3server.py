"""A real S3 server for a test: versitygw over a folder, on a free loopback port.

The program is the one of the local cluster. Where it is not on PATH or in RATCHET_HOME, it is compiled once
from its Go module.
"""

import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from ratchet.api.v1alpha1.training import S3
from ratchet.checkpoints import Blob, CheckpointStore, Manifest, Stored

MODULE = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
START_SECONDS = 30


@dataclass(frozen=True, slots=True)
class S3Server:
    """Where it is, and the keys that open it."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 2}),
        )

    def credentials(self, folder: Path) -> Path:
        """A folder as a mounted Secret looks."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "AWS_ACCESS_KEY_ID").write_text(self.access_key)
        (folder / "AWS_SECRET_ACCESS_KEY").write_text(self.secret_key)
        return folder


class HeldStore(CheckpointStore):
    """Checkpoints under a prefix of their own, whose writing a test may hold up or let fail."""

    def __init__(self, server: S3Server) -> None:
        self.prefix = f"held-{secrets.token_hex(4)}"
        super().__init__(server.client(), S3(bucket="ratchet", endpoint=server.endpoint), self.prefix)
        self.begun = threading.Event()
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.failure: Exception | None = None

    def write(self, manifest: Callable[[dict[str, Blob]], Manifest], blobs: Mapping[str, bytes]) -> Stored:
        self.begun.set()
        self.goes_on.wait()
        if self.failure is not None:
            raise self.failure
        return super().write(manifest, blobs)


def versitygw() -> Path:
    """The program, compiled if need be."""
    home = Path(os.environ.get("RATCHET_HOME", Path.home() / ".cache" / "ratchet")) / "bin"
    found = shutil.which("versitygw", path=f"{os.environ['PATH']}:{home}")
    if found:
        return Path(found)
    home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GOBIN": str(home), "CGO_ENABLED": "0"}
    subprocess.run(["go", "install", MODULE], check=True, env=environment, timeout=1200)
    return home / "versitygw"


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Runs until the block ends; objects lie below `folder`."""
    data, iam = folder / "data", folder / "iam"
    data.mkdir(parents=True)
    iam.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = S3Server(f"http://127.0.0.1:{port}", f"key{secrets.token_hex(6)}", secrets.token_hex(16))
    environment = {
        "PATH": os.environ["PATH"],
        "ROOT_ACCESS_KEY": server.access_key,
        "ROOT_SECRET_KEY": server.secret_key,
    }
    log = (folder / "s3.log").open("w")
    process = subprocess.Popen(
        [versitygw(), "--port", f"127.0.0.1:{port}", "--iam-dir", str(iam), "posix", str(data)],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait(server, process, folder)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=10)
        log.close()


def _wait(server: S3Server, process: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            server.client().list_buckets()
        except (BotoCoreError, ClientError):
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"versitygw did not start:\n{(folder / 's3.log').read_text()}") from None
            time.sleep(0.1)
        else:
            return
