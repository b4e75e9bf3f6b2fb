"""The cluster's S3 server: deployed, given credentials, and asked for its bucket as any client would."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import http.client
import json
import secrets
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localcluster import addons
from localcluster.kindcluster import kubectl, kubectl_json
from localcluster.settings import MANIFESTS, Settings
from localcluster.shell import StepError, answer, run, wait_until
from localcluster.steps import Step

NAMESPACE, NAME, BUCKET, SECRET = "ratchet-s3", "s3", "ratchet", "s3-credentials"
REGION = "us-east-1"
ENDPOINT = f"http://{NAME}.{NAMESPACE}.svc:9000"
MANIFEST = MANIFESTS / "s3.yaml"


@dataclass(frozen=True)
class Credentials:
    key_id: str
    secret: str

    def __repr__(self) -> str:
        return f"Credentials({self.key_id!r}, …)"

    @classmethod
    def fresh(cls) -> Credentials:
        return cls(f"ratchet{secrets.token_hex(6)}", secrets.token_hex(24))


def step(settings: Settings) -> Step:
    return Step("S3 server", lambda: _present(settings), lambda log: _make(settings, log))


def _present(settings: Settings) -> bool:
    credentials = _read_credentials(settings, NAMESPACE)
    return (
        credentials is not None
        and credentials == _read_credentials(settings, "default")
        and addons.deployed(settings, NAMESPACE, NAME, MANIFEST)
        and bucket_answers(settings, credentials)
    )


def _make(settings: Settings, log: Path) -> None:
    # The Secret comes before the Deployment that reads it, and so the namespace before both.
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    credentials = _read_credentials(settings, NAMESPACE) or Credentials.fresh()
    _apply(settings, namespace, log)
    for target in (NAMESPACE, "default"):
        _apply(settings, _secret(target, credentials), log)
    if not addons.deployed(settings, NAMESPACE, NAME, MANIFEST):
        addons.deploy(settings, NAMESPACE, NAME, MANIFEST, log)
    if not wait_until(lambda: bucket_answers(settings, credentials, create=True), seconds=60):
        raise StepError(
            "the S3 server does not answer", hint=f"`kubectl -n {NAMESPACE} logs deploy/{NAME}` tells why."
        )


def _apply(settings: Settings, thing: object, log: Path) -> None:
    words = kubectl(
        settings, "apply", "--server-side", "--force-conflicts", addons.FIELD_MANAGER, "--filename=-"
    )
    run(words, stdin=json.dumps(thing), log=log)


def _secret(namespace: str, credentials: Credentials) -> object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": namespace},
        "stringData": {"AWS_ACCESS_KEY_ID": credentials.key_id, "AWS_SECRET_ACCESS_KEY": credentials.secret},
    }


def _read_credentials(settings: Settings, namespace: str) -> Credentials | None:
    found = kubectl_json(settings, "--namespace", namespace, "get", "secret", SECRET)
    if not found:
        return None
    values = {name: base64.b64decode(value).decode() for name, value in found.get("data", {}).items()}
    if not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= values.keys():
        return None
    return Credentials(values["AWS_ACCESS_KEY_ID"], values["AWS_SECRET_ACCESS_KEY"])


def bucket_answers(settings: Settings, credentials: Credentials, *, create: bool = False) -> bool:
    """Whether the bucket answers a signed request; where it is absent and `create` is set, made first."""
    try:
        with _forwarded_port(settings) as port:
            status = _request(port, "HEAD", credentials)
            if status == 404 and create:
                _request(port, "PUT", credentials)
                status = _request(port, "HEAD", credentials)
    except (OSError, http.client.HTTPException):
        return False
    return status == 200


def _request(port: int, method: str, credentials: Credentials) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        host, path = f"127.0.0.1:{port}", f"/{BUCKET}"
        connection.request(
            method,
            path,
            headers=signed_headers(method, host, path, credentials, datetime.datetime.now(datetime.UTC)),
        )
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def signed_headers(
    method: str, host: str, path: str, credentials: Credentials, now: datetime.datetime
) -> Mapping[str, str]:
    """AWS Signature Version 4 of a request without body and query, as the S3 API reference describes it."""
    empty = hashlib.sha256(b"").hexdigest()
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    headers = {"host": host, "x-amz-content-sha256": empty, "x-amz-date": stamp}
    names = ";".join(headers)
    canonical = "\n".join(
        [method, path, "", *(f"{name}:{value}" for name, value in headers.items()), "", names, empty]
    )
    scope = f"{day}/{REGION}/s3/aws4_request"
    to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{credentials.secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    signed = f"Credential={credentials.key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**headers, "authorization": f"AWS4-HMAC-SHA256 {signed}"}


@contextmanager
def _forwarded_port(settings: Settings) -> Generator[int]:
    """A port on loopback that leads to the Service, while the context lasts.

    Raises:
        ConnectionError: the forwarding does not start, as where no pod is ready.

    """
    words = [
        str(word)
        for word in kubectl(settings, "--namespace", NAMESPACE, "port-forward", f"service/{NAME}", ":9000")
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        # "Forwarding from 127.0.0.1:43211 -> 9000", or nothing where it gives up.
        line = process.stdout.readline() if process.stdout else ""
        if "->" not in line:
            raise ConnectionError("kubectl does not forward a port to the S3 server")
        yield int(line.partition(":")[2].split()[0])
    finally:
        process.terminate()
        process.wait(timeout=10)


def describe(settings: Settings) -> str:
    """One line for `status`."""
    volume = (
        answer(
            kubectl(
                settings, "--namespace", NAMESPACE, "get", "pvc", NAME, "--output=jsonpath={.status.phase}"
            )
        )
        or "absent"
    )
    credentials = _read_credentials(settings, NAMESPACE)
    state = "answers" if credentials and bucket_answers(settings, credentials) else "does not answer"
    secret = f"credentials in Secret {SECRET} of {NAMESPACE} and default"
    return f"{ENDPOINT} bucket {BUCKET} {state}, volume {volume}, {secret}"
