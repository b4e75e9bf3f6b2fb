"""`ratchet export`: from a job, a checkpoint or a folder to a folder that a policy server takes."""

import json
import secrets
from pathlib import Path

import pytest
from s3server import S3Server
from servedpolicies import artifact
from test_cli import FakeCluster, job, run

from ratchet.api.v1alpha1.training import S3
from ratchet.checkpoints import CheckpointStore, Lineage, Manifest, Stored
from ratchet.cli.outcome import Exit
from ratchet.policies.artifact import read_folder, write_folder


@pytest.fixture
def stored(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Stored:
    """A checkpoint with a policy, and credentials as a user has them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    monkeypatch.delenv("RATCHET_S3_CREDENTIALS_DIR", raising=False)
    store = CheckpointStore(
        s3.client(), S3(bucket="ratchet", endpoint=s3.endpoint), f"export-{secrets.token_hex(4)}"
    )
    lineage = Lineage(namespace="default", job="cartpole", uid="1", attempt=1)
    return store.write(
        lambda blobs: Manifest(steps=7, epoch=1, version=1, time="", blobs=blobs, lineage=lineage),
        {"state": b"tensors", **artifact().files},
    )


def trained(stored: Stored, s3: S3Server, digest: str | None = None) -> FakeCluster:
    saved = {"uri": stored.uri, "digest": f"sha256:{digest or stored.digest}"}
    one = job(checkpoints={"best": saved})
    one["spec"]["checkpoint"]["s3"]["endpoint"] = s3.endpoint
    return FakeCluster(one)


def test_the_best_checkpoint_of_a_job_becomes_a_folder(stored: Stored, s3: S3Server, tmp_path: Path):
    result = run(trained(stored, s3), "export", "cartpole", str(tmp_path / "policy"))
    assert result.exit_code == Exit.OK
    assert f"digest sha256:{artifact().digest}" in result.output
    assert read_folder(tmp_path / "policy", artifact().digest) == artifact()


def test_a_checkpoint_is_exported_by_its_uri_in_another_format(stored: Stored, s3: S3Server, tmp_path: Path):
    result = run(
        FakeCluster(), "export", stored.uri, str(tmp_path), "--endpoint", s3.endpoint, "--weights", "int8",
        "-o", "json",
    )  # fmt: skip
    said = json.loads(result.output)
    found = read_folder(tmp_path, said["digest"])
    assert (said["weights"], found.description.weights) == ("int8", "int8")
    assert said["lineage"]["convertedFrom"] == artifact().digest
    assert found.policy().spec == artifact().description.spec


def test_a_folder_is_converted_without_a_cluster_or_a_bucket(tmp_path: Path):
    write_folder(artifact(), tmp_path / "exact")
    result = run(
        FakeCluster(), "export", str(tmp_path / "exact"), str(tmp_path / "half"), "--weights", "bfloat16"
    )
    assert result.exit_code == Exit.OK
    assert read_folder(tmp_path / "half").description.weights == "bfloat16"


def test_what_cannot_be_exported_is_said(stored: Stored, s3: S3Server, tmp_path: Path):
    result = run(FakeCluster(job()), "export", "cartpole", str(tmp_path))
    assert (result.exit_code, "has no best checkpoint yet" in result.output) == (Exit.NO, True)

    result = run(trained(stored, s3, "f" * 64), "export", "cartpole", str(tmp_path))
    assert (result.exit_code, "neither is ffff" in result.output) == (Exit.NO, True)

    result = run(FakeCluster(), "export", str(tmp_path / "nothing"), str(tmp_path))
    assert (result.exit_code, "policy.json can't be read" in result.output) == (Exit.NO, True)

    result = run(FakeCluster(), "export", stored.uri, str(tmp_path), "--endpoint", "http://127.0.0.1:1")
    assert (result.exit_code, "EndpointConnectionError" in result.output) == (Exit.UNAVAILABLE, True)
    assert list(tmp_path.iterdir()) == []
