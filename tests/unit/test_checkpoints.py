"""Checkpoints in a real S3 server: whole or passed over, and only what is asked for is removed."""

import hashlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redisserver import free_port
from s3server import S3Server

from ratchet.api.v1alpha1.training import S3
from ratchet.checkpoints import (
    Blob,
    CheckpointStore,
    CheckpointsUnreadable,
    Lineage,
    Manifest,
    StorageDenied,
    StorageUnavailable,
    Stored,
    Superseded,
    connect,
)

BUCKET = "ratchet"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LINEAGE = Lineage(namespace="default", job="cartpole", uid="1f2e", attempt=1)


class Failing:
    """A client that may be told to fail after some writes, as if its process were gone."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._puts: int | None = None

    @contextmanager
    def after(self, puts: int) -> Iterator[None]:
        self._puts = puts
        yield
        self._puts = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def put_object(self, **arguments: Any) -> Any:
        if self._puts is not None:
            if self._puts == 0:
                raise EndpointConnectionError(endpoint_url="http://gone")
            self._puts -= 1
        return self._client.put_object(**arguments)


class Bucket:
    """A job's part of the bucket: its checkpoints, and the objects that they are made of."""

    def __init__(self, server: S3Server) -> None:
        self.client = server.client()
        self.failing = Failing(self.client)
        self.prefix = f"job-{secrets.token_hex(4)}"
        self.settings = S3(bucket=BUCKET, endpoint=server.endpoint)
        self.store = self.through(self.failing)

    def through(self, client: Any) -> CheckpointStore:
        return CheckpointStore(client, self.settings, self.prefix)

    def objects(self, folder: str = "") -> list[str]:
        page = self.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{self.prefix}/{folder}")
        return [entry["Key"] for entry in page.get("Contents", [])]

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=key)

    def blob(self, content: bytes) -> str:
        return f"{self.prefix}/blobs/sha256/{hashlib.sha256(content).hexdigest()}"

    def manifest(self, stored: Stored) -> str:
        return f"{self.prefix}/manifests/{stored.manifest.name}.json"


@pytest.fixture
def bucket(s3: S3Server) -> Bucket:
    return Bucket(s3)


def parts(steps: int) -> dict[str, bytes]:
    return {"state": f"state of {steps}".encode(), "policy": f"policy of {steps}".encode()}


def write(
    store: CheckpointStore,
    steps: int,
    epoch: int = 1,
    mean_return: float | None = None,
    blobs: dict[str, bytes] | None = None,
) -> Stored:
    def manifest(hashes: dict[str, Blob]) -> Manifest:
        return Manifest(
            steps=steps, epoch=epoch, version=steps, time="2026-01-01T00:00:00Z", mean_return=mean_return,
            blobs=hashes, lineage=LINEAGE,
        )  # fmt: skip

    return store.write(manifest, blobs or parts(steps))


def test_what_is_written_is_read_again(bucket: Bucket):
    assert bucket.store.newest() is None

    stored = write(bucket.store, 100, mean_return=2.5)
    loaded = bucket.store.newest()

    assert loaded is not None
    assert loaded.stored == stored
    assert loaded.blobs == parts(100)
    assert loaded.passed_over == ()
    assert stored.uri == f"s3://{BUCKET}/{bucket.manifest(stored)}"
    assert stored.digest == hashlib.sha256(bucket.get(bucket.manifest(stored))).hexdigest()


@pytest.mark.parametrize("puts", [0, 1, 2])
def test_a_crash_before_the_manifest_leaves_the_checkpoint_before(bucket: Bucket, puts: int):
    before = write(bucket.store, 100)

    with bucket.failing.after(puts), pytest.raises(StorageUnavailable):
        write(bucket.store, 200)

    loaded = bucket.store.newest()
    assert loaded is not None
    assert loaded.stored == before
    assert loaded.passed_over == ()


def test_the_manifest_is_the_last_write(bucket: Bucket):
    """With one write more than the crashes above allow for, the checkpoint is there."""
    bucket.store.claim(1)
    with bucket.failing.after(len(parts(0)) + 1):
        write(bucket.store, 200)
    loaded = bucket.store.newest()
    assert loaded is not None
    assert loaded.stored.manifest.steps == 200


def truncated(bucket: Bucket, stored: Stored) -> str:
    bucket.put(bucket.blob(b"state of 200"), b"state")
    return "damaged state (5 of 12 bytes)"


def changed(bucket: Bucket, stored: Stored) -> str:
    bucket.put(bucket.blob(b"policy of 200"), b"Policy of 200")
    return "damaged policy"


def missing(bucket: Bucket, stored: Stored) -> str:
    bucket.delete(bucket.blob(b"state of 200"))
    return "lacks its state"


def no_json(bucket: Bucket, stored: Stored) -> str:
    bucket.put(bucket.manifest(stored), bucket.get(bucket.manifest(stored))[:-20])
    return "is no manifest"


def other_fields(bucket: Bucket, stored: Stored) -> str:
    bucket.put(bucket.manifest(stored), b'{"steps": 200}')
    return "is no manifest"


DAMAGES = [truncated, changed, missing, no_json, other_fields]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_broken_checkpoint_is_passed_over_and_said(bucket: Bucket, damage: Callable[[Bucket, Stored], str]):
    whole = write(bucket.store, 100)
    sentence = damage(bucket, write(bucket.store, 200))

    loaded = bucket.store.newest()

    assert loaded is not None
    assert loaded.stored == whole
    assert loaded.blobs == parts(100)
    [said] = loaded.passed_over
    assert said.startswith("000000000200-1-200")
    assert sentence in said


def test_with_none_whole_nothing_is_begun_anew(bucket: Bucket):
    missing(bucket, write(bucket.store, 200))
    no_json(bucket, write(bucket.store, 300))

    with pytest.raises(CheckpointsUnreadable, match="none of the 2 checkpoints under s3://ratchet/job-"):
        bucket.store.newest()


def test_the_newest_is_of_the_highest_epoch_whatever_its_steps(bucket: Bucket):
    """A trainer that resumed from 100 steps and came to 150 is further than one before, at 200."""
    write(bucket.store, 100, epoch=1)
    write(bucket.store, 200, epoch=1)
    write(bucket.store, 150, epoch=10)

    loaded = bucket.store.newest()

    assert loaded is not None
    assert loaded.stored.manifest.steps == 150


def test_other_objects_among_the_manifests_are_left_alone(bucket: Bucket):
    bucket.put(f"{bucket.prefix}/manifests/README.json", b"{}")
    assert bucket.store.names() == []
    assert bucket.store.newest() is None


def test_an_older_trainer_is_superseded_and_writes_nothing(bucket: Bucket):
    write(bucket.store, 100, epoch=2)
    before = bucket.objects()

    with pytest.raises(Superseded, match="epoch 2; this one holds epoch 1"):
        write(bucket.store, 200, epoch=1)

    assert bucket.objects() == before


def test_a_trainer_that_is_superseded_while_it_uploads_writes_no_manifest(bucket: Bucket):
    class Overtaken(Failing):
        def put_object(self, **arguments: Any) -> Any:
            if "/blobs/" in arguments["Key"]:
                bucket.store.claim(2)
            return super().put_object(**arguments)

    with pytest.raises(Superseded):
        write(bucket.through(Overtaken(bucket.client)), 200, epoch=1)

    assert len(bucket.objects("blobs/")) == len(parts(200))
    assert bucket.store.names() == []


@pytest.mark.parametrize("claimed", [1, 2], ids=["the same", "a higher one"])
def test_who_finds_its_epoch_or_a_higher_one_claimed_by_another_writes_nothing(bucket: Bucket, claimed: int):
    bucket.through(bucket.client).claim(claimed)
    before = bucket.objects()

    with pytest.raises(Superseded, match=f"claimed epoch {claimed}; this one holds epoch 1"):
        write(bucket.store, 100, epoch=1)

    assert bucket.objects() == before


def test_of_two_that_claim_an_epoch_at_the_same_time_none_writes(bucket: Bucket):
    other = bucket.through(bucket.client)

    class AtOnce(Failing):
        def put_object(self, **arguments: Any) -> Any:
            other.claim(1)
            return super().put_object(**arguments)

    with pytest.raises(Superseded):
        bucket.through(AtOnce(bucket.client)).claim(1)
    with pytest.raises(Superseded):
        write(other, 100)

    bucket.store.claim(2)
    write(bucket.store, 100, epoch=2)
    assert len(bucket.objects("epochs/")) == 1, "claims that are outdated are taken away"


def test_a_claim_whose_answer_was_lost_can_be_repeated(bucket: Bucket):
    class Deaf(Failing):
        def put_object(self, **arguments: Any) -> Any:
            super().put_object(**arguments)
            raise EndpointConnectionError(endpoint_url="http://gone")

    deaf = Deaf(bucket.client)
    store = bucket.through(deaf)
    with pytest.raises(StorageUnavailable):
        store.claim(1)
    deaf.put_object = bucket.client.put_object
    store.claim(1)
    assert [epoch for epoch, _ in store.claims()] == [1]


def test_retention_keeps_the_last_and_the_best(bucket: Bucket):
    for steps, mean_return in ((100, 5.0), (200, 9.0), (300, None), (400, 7.0), (500, 1.0)):
        write(bucket.store, steps, mean_return=mean_return)

    gone = bucket.store.retain(last=1, best=2, now=NOW)

    assert gone == ["000000000100-1-100", "000000000300-1-300"]
    kept = [200, 400, 500]
    assert [int(name.split("-")[0]) for name in bucket.store.names()] == kept
    contents = [content for steps in kept for content in parts(steps).values()]
    assert sorted(bucket.objects("blobs/")) == sorted(bucket.blob(content) for content in contents)


def test_retention_leaves_what_is_spoken_of_and_what_has_just_lost_its_place(bucket: Bucket):
    for steps in (100, 200, 300):
        write(bucket.store, steps)

    assert bucket.store.retain(last=1, best=1, now=NOW, grace=timedelta(minutes=10)) == []
    gone = bucket.store.retain(last=1, best=1, now=NOW, kept=["000000000100-1-100"])

    assert gone == ["000000000200-1-200"]
    assert bucket.blob(b"state of 100") in bucket.objects()
    assert bucket.blob(b"state of 200") not in bucket.objects()


def test_retention_keeps_blobs_that_a_kept_checkpoint_shares(bucket: Bucket):
    shared = b"the same in all"
    for steps in (100, 200):
        write(bucket.store, steps, blobs={**parts(steps), "policy.json": shared})

    bucket.store.retain(last=1, best=1, now=NOW)

    loaded = bucket.store.newest()
    assert loaded is not None
    assert loaded.blobs == {**parts(200), "policy.json": shared}
    assert bucket.blob(b"state of 100") not in bucket.objects()


def test_retention_leaves_blobs_of_a_checkpoint_that_is_being_written(bucket: Bucket):
    for steps in (100, 200):
        write(bucket.store, steps)
    young = bucket.blob(b"of no manifest yet")
    bucket.put(young, b"of no manifest yet")

    bucket.store.retain(last=1, best=1, now=datetime.now(UTC))
    assert young in bucket.objects()

    write(bucket.store, 300)
    bucket.store.retain(last=1, best=1, now=datetime.now(UTC) + timedelta(hours=2))
    assert young not in bucket.objects()


def test_retention_does_not_count_what_is_broken_as_kept(bucket: Bucket):
    whole = write(bucket.store, 100)
    broken = write(bucket.store, 200)
    no_json(bucket, broken)

    assert bucket.store.retain(last=1, best=1, now=NOW) == []

    loaded = bucket.store.newest()
    assert loaded is not None
    assert loaded.stored == whole


writes = st.tuples(st.just("write"), st.integers(1, 9), st.none() | st.integers(-2, 2).map(float))
retains = st.tuples(st.just("retain"), st.integers(1, 3), st.integers(1, 3))
crashes = st.tuples(st.just("crash"), st.integers(0, 2), st.just(0))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(writes, retains, crashes), max_size=8))
def test_whatever_is_written_and_removed_the_newest_stays_readable(s3: S3Server, history: list[Any]):
    bucket = Bucket(s3)
    steps, newest, best = 0, None, None
    for what, number, other in history:
        if what == "write":
            steps += number
            newest = write(bucket.store, steps, mean_return=other)
            if other is not None and (best is None or other >= best):
                best = other
        elif what == "crash":
            bucket.store.claim(1)
            with bucket.failing.after(number), pytest.raises(StorageUnavailable):
                write(bucket.store, steps + 1)
        else:
            bucket.store.retain(number, other, datetime.now(UTC))

        loaded = bucket.store.newest()
        assert (loaded.stored if loaded else None) == newest
        assert loaded is None or loaded.passed_over == ()
        manifests = [Manifest.model_validate_json(bucket.get(key)) for key in bucket.objects("manifests/")]
        assert best is None or max(m.mean_return for m in manifests if m.mean_return is not None) == best


def connected(
    server: S3Server, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> CheckpointStore:
    monkeypatch.setenv("RATCHET_S3_CREDENTIALS_DIR", str(server.credentials(folder)))
    settings = S3(**{"bucket": BUCKET, "endpoint": server.endpoint, **changes})
    return CheckpointStore(connect(settings), settings, "job")


def test_credentials_come_from_the_mounted_secret(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert connected(s3, tmp_path, monkeypatch).newest() is None


def test_wrong_keys_are_denied_with_advice_and_without_the_secret(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wrong = S3Server(s3.endpoint, s3.access_key, "not-the-secret")
    with pytest.raises(StorageDenied) as denied:
        connected(wrong, tmp_path, monkeypatch).newest()

    assert "SignatureDoesNotMatch. Correct the keys in the Secret of checkpoint.s3.secretRef" in str(
        denied.value
    )
    assert "not-the-secret" not in str(denied.value)


def test_an_unknown_user_is_denied_whatever_this_server_calls_it(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stranger = S3Server(s3.endpoint, "stranger", "not-the-secret")
    with pytest.raises(StorageDenied, match=r"Correct the keys in the Secret of checkpoint.s3.secretRef"):
        connected(stranger, tmp_path, monkeypatch).newest()


def test_a_missing_bucket_is_denied_with_advice(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = connected(s3, tmp_path, monkeypatch, bucket="nowhere")
    with pytest.raises(StorageDenied, match=r"bucket nowhere at http.*NoSuchBucket. Create the bucket"):
        store.newest()
    with pytest.raises(StorageDenied, match="NoSuchBucket"):
        write(store, 1)


@pytest.mark.parametrize("absent", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_secret_without_a_key_is_named(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str
):
    (s3.credentials(tmp_path) / absent).unlink()
    monkeypatch.setenv("RATCHET_S3_CREDENTIALS_DIR", str(tmp_path))

    with pytest.raises(StorageDenied, match=f"has no key {absent}: add it"):
        connect(S3(bucket=BUCKET, endpoint=s3.endpoint))


def test_a_server_that_does_not_answer_is_unavailable_not_denied(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = connected(s3, tmp_path, monkeypatch, endpoint=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StorageUnavailable, match=r"bucket ratchet at http.*EndpointConnectionError"):
        store.newest()
