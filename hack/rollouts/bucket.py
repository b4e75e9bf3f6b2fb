"""The S3 server of the local cluster, reached from this machine."""

import base64
import json
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config

NAMESPACE = "ratchet-s3"


@contextmanager
def reached(kubectl: str = "kubectl") -> Generator[Any]:
    """A boto3 client for as long as the block lasts; the keys are those of the cluster's own Secret."""
    asked = [kubectl, "--namespace", NAMESPACE]
    secret = subprocess.run(
        [*asked, "get", "secret", "s3-credentials", "-o", "json"], check=True, capture_output=True
    ).stdout
    key = {name: base64.b64decode(value).decode() for name, value in json.loads(secret)["data"].items()}
    forward = subprocess.Popen(
        [*asked, "port-forward", "service/s3", ":9000"], stdout=subprocess.PIPE, text=True
    )
    try:
        # «Forwarding from 127.0.0.1:41234 -> 9000»
        line = forward.stdout.readline() if forward.stdout else ""
        if "->" not in line:
            raise RuntimeError(f"kubectl port-forward service/s3: {line!r}")
        library: Any = boto3
        yield library.client(
            "s3",
            endpoint_url=f"http://{line.split('from ')[1].split(' ->')[0]}",
            region_name="us-east-1",
            aws_access_key_id=key["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=key["AWS_SECRET_ACCESS_KEY"],
            config=Config(s3={"addressing_style": "path"}),
        )
    finally:
        forward.terminate()
        forward.wait(timeout=10)


def empty(client: Any, bucket: str, folder: str) -> None:
    """Deletes all that is below a folder."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{folder}/"):
        for entry in page.get("Contents", []):
            client.delete_object(Bucket=bucket, Key=entry["Key"])
