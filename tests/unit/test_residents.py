"""A server's policies: from anywhere, refused when wrong, kept while the bucket is gone, swapped at once."""

import asyncio
import errno
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ratchet_inference.residents import PolicyCache, Residents
from s3server import S3Server, s3_server
from servedpolicies import CARTPOLE, artifact, plain

from ratchet.api.v1alpha1.training import S3
from ratchet.checkpoints import CheckpointStore, Lineage, Manifest, Stored
from ratchet.policies import ServedPolicy
from ratchet.policies.artifact import DESCRIPTION, GOLDEN, WEIGHTS, Artifact, write_folder
from ratchet.policies.errors import (
    ArtifactCorrupt,
    ArtifactDenied,
    ArtifactError,
    ArtifactMissing,
    ArtifactUnavailable,
    ArtifactUnsupported,
)
from ratchet.policies.sources import Server

LARGE = 1 << 30


@dataclass
class Bucket:
    """A prefix of the test's own on a real server."""

    server: S3Server
    prefix: str

    @property
    def uri(self) -> str:
        return f"s3://ratchet/{self.prefix}"

    def put(self, key: str, content: bytes) -> None:
        self.server.client().put_object(Bucket="ratchet", Key=f"{self.prefix}/{key}", Body=content)

    def upload(self, policy: Artifact) -> None:
        for name, content in policy.files.items():
            self.put(name, content)

    def checkpoint(self, policy: Artifact | None, steps: int = 100) -> Stored:
        """As a trainer stores one."""
        store = CheckpointStore(
            self.server.client(), S3(bucket="ratchet", endpoint=self.server.endpoint), self.prefix
        )
        lineage = Lineage(namespace="default", job="cartpole", uid="1", attempt=1)
        return store.write(
            lambda blobs: Manifest(steps=steps, epoch=1, version=1, time="", blobs=blobs, lineage=lineage),
            {"state": b"tensors", **(policy.files if policy else {"policy": b"old", DESCRIPTION: b"{}"})},
        )


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("RATCHET_S3_CREDENTIALS_DIR", str(s3.credentials(tmp_path / "secret")))
    return Bucket(s3, f"policies-{secrets.token_hex(4)}/deep")


def residents(bucket: Bucket | None = None, cache: Path | None = None, **options: Any) -> Residents:
    return Residents(cache, Server(bucket.server.endpoint) if bucket else None, **options)


def load(into: Residents, source: str | Path, digest: str | None = None) -> ServedPolicy:
    return asyncio.run(into.load(str(source), digest))


def gone(cache: Path | None) -> Residents:
    """A server whose bucket does not answer: nothing listens there."""
    return Residents(cache, Server("http://127.0.0.1:1"))


def answers(policy: ServedPolicy) -> list[float]:
    return policy.decide(**plain(np.ones((3, 4), np.float32))).log_probability.tolist()


@pytest.mark.parametrize("prefix", ["", "sha256:"])
def test_a_policy_comes_from_a_folder_a_prefix_and_a_checkpoint(bucket: Bucket, tmp_path: Path, prefix: str):
    policy = artifact()
    write_folder(policy, tmp_path / "here")
    bucket.upload(policy)
    stored = bucket.checkpoint(policy)
    into = residents(bucket)
    sources: list[tuple[str, str | None]] = [
        (str(tmp_path / "here"), policy.digest),
        (f"file://{tmp_path}/here", None),
        (bucket.uri, policy.digest),
        (f"{bucket.uri}/", None),
        (stored.uri, policy.digest),
        (stored.uri, stored.digest),
        (stored.uri, None),
    ]
    for source, digest in sources:
        loaded = load(into, source, digest and prefix + digest)
        assert loaded.digest == policy.digest
        assert answers(loaded) == pytest.approx(answers(policy.policy()))
    assert into.current is None


def test_a_swap_keeps_the_one_before_and_can_go_back(tmp_path: Path):
    into = residents()
    first, second, third = (ServedPolicy.of(c * 64, CARTPOLE, artifact().parameters()) for c in "abc")
    into.swap(first)
    assert (into.current, into.previous) == (first, None)
    into.swap(second)
    assert (into.current, into.previous) == (second, first)
    into.swap(first)
    assert (into.current, into.previous) == (first, second)
    into.swap(third)
    assert (into.current, into.previous) == (third, first)
    # The same policy again, loaded anew, does not push out the one to go back to.
    again = ServedPolicy.of("c" * 64, CARTPOLE, artifact().parameters())
    into.swap(again)
    assert (into.current, into.previous) == (again, first)


def wrong_digest(bucket: Bucket) -> tuple[str, str | None]:
    bucket.upload(artifact())
    return bucket.uri, "f" * 64


def damaged(bucket: Bucket) -> tuple[str, str | None]:
    bucket.upload(artifact())
    bucket.put(WEIGHTS, b"x" * len(artifact().files[WEIGHTS]))
    return bucket.uri, None


def absent(bucket: Bucket) -> tuple[str, str | None]:
    bucket.upload(artifact())
    bucket.server.client().delete_object(Bucket="ratchet", Key=f"{bucket.prefix}/{GOLDEN}")
    return bucket.uri, None


def nothing(bucket: Bucket) -> tuple[str, str | None]:
    return bucket.uri, None


def of_another_manifest(bucket: Bucket) -> tuple[str, str | None]:
    return bucket.checkpoint(artifact()).uri, "f" * 64


def damaged_blob(bucket: Bucket) -> tuple[str, str | None]:
    stored = bucket.checkpoint(artifact())
    bucket.put(
        f"blobs/sha256/{stored.manifest.blobs[DESCRIPTION].sha256}", artifact(seed=1).files[DESCRIPTION]
    )
    return stored.uri, stored.digest


def of_an_older_trainer(bucket: Bucket) -> tuple[str, str | None]:
    return bucket.checkpoint(None).uri, None


def no_manifest(bucket: Bucket) -> tuple[str, str | None]:
    bucket.put("manifests/000000000001-1-1.json", b"{}")
    return f"{bucket.uri}/manifests/000000000001-1-1.json", None


def no_bucket(_bucket: Bucket) -> tuple[str, str | None]:
    return "s3://nowhere-at-all/prefix", None


def no_prefix(_bucket: Bucket) -> tuple[str, str | None]:
    return "s3://ratchet", None


def no_digest(bucket: Bucket) -> tuple[str, str | None]:
    return bucket.uri, "../../etc"


@pytest.mark.parametrize(
    ("wrong", "error", "sentence"),
    [
        (wrong_digest, ArtifactCorrupt, "policy.json has the digest .*, not ffff"),
        (damaged, ArtifactCorrupt, "policy.safetensors has the digest"),
        (absent, ArtifactMissing, "has no golden.safetensors"),
        (nothing, ArtifactMissing, "has no policy.json"),
        (of_another_manifest, ArtifactCorrupt, "has the digest .*: neither is ffff"),
        (damaged_blob, ArtifactCorrupt, "policy.json has the digest"),
        (of_an_older_trainer, ArtifactUnsupported, "a trainer that did not export its policy"),
        (no_manifest, ArtifactCorrupt, "is no manifest of a checkpoint"),
        (no_bucket, ArtifactDenied, "NoSuchBucket. Create the bucket, or correct s3.bucket"),
        (no_prefix, ArtifactError, "is not s3://bucket/prefix"),
        (no_digest, ArtifactError, "is no SHA-256"),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_what_is_wrong_is_refused_and_the_old_one_goes_on(
    bucket: Bucket,
    tmp_path: Path,
    wrong: Callable[[Bucket], tuple[str, str | None]],
    error: type[ArtifactError],
    sentence: str,
    cached: bool,
):
    into = residents(bucket, tmp_path / "cache" if cached else None)
    old = ServedPolicy.of("a" * 64, CARTPOLE, artifact().parameters())
    into.swap(old)
    source, digest = wrong(bucket)
    with pytest.raises(error, match=sentence):
        load(into, source, digest)
    assert into.current is old


def test_a_server_restarts_from_its_disk_while_the_bucket_is_gone(bucket: Bucket, tmp_path: Path):
    policy = artifact()
    bucket.upload(policy)
    stored = bucket.checkpoint(policy)
    with pytest.raises(ArtifactUnavailable, match="EndpointConnectionError"):
        load(gone(tmp_path), bucket.uri)

    load(residents(bucket, tmp_path), bucket.uri)
    load(residents(bucket, tmp_path), stored.uri, stored.digest)

    for source, digest in (
        (bucket.uri, None),
        (bucket.uri, policy.digest),
        (stored.uri, stored.digest),
        (stored.uri, None),
        ("s3://another/place", policy.digest),
    ):
        assert load(gone(tmp_path), source, digest).digest == policy.digest
    with pytest.raises(ArtifactUnavailable):
        load(gone(tmp_path), "s3://another/place")
    with pytest.raises(ArtifactUnavailable):
        load(gone(tmp_path), bucket.uri, "f" * 64)


def test_a_bucket_that_stops_between_two_loads_leaves_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with s3_server(tmp_path / "server") as server:
        server.client().create_bucket(Bucket="ratchet")
        monkeypatch.setenv("RATCHET_S3_CREDENTIALS_DIR", str(server.credentials(tmp_path / "secret")))
        mine = Bucket(server, "policy")
        mine.upload(artifact())
        into = residents(mine, tmp_path / "cache")
        into.swap(load(into, mine.uri))
    assert load(into, mine.uri).digest == artifact().digest


def test_what_the_bucket_holds_now_comes_before_the_copy_of_what_it_held(bucket: Bucket, tmp_path: Path):
    bucket.upload(artifact())
    assert load(residents(bucket, tmp_path), bucket.uri).digest == artifact().digest
    bucket.upload(artifact(seed=1))
    assert load(residents(bucket, tmp_path), bucket.uri).digest == artifact(seed=1).digest
    assert load(gone(tmp_path), bucket.uri).digest == artifact(seed=1).digest
    # The digest that was asked for is served although the bucket has moved on.
    assert load(residents(bucket, tmp_path), bucket.uri, artifact().digest).digest == artifact().digest


@pytest.mark.parametrize("name", [DESCRIPTION, WEIGHTS, GOLDEN])
def test_a_damaged_copy_is_fetched_again(bucket: Bucket, tmp_path: Path, name: str):
    policy = artifact()
    bucket.upload(policy)
    load(residents(bucket, tmp_path), bucket.uri)
    (tmp_path / policy.digest / name).write_bytes(b"damage")

    with pytest.raises(ArtifactUnavailable):
        load(gone(tmp_path), bucket.uri, policy.digest)

    assert load(residents(bucket, tmp_path), bucket.uri, policy.digest).digest == policy.digest
    assert load(gone(tmp_path), bucket.uri, policy.digest).digest == policy.digest


def test_a_disk_that_takes_nothing_does_not_keep_a_policy_from_being_served(bucket: Bucket, tmp_path: Path):
    bucket.upload(artifact())
    (tmp_path / "file").touch()
    assert load(residents(bucket, tmp_path / "file"), bucket.uri).digest == artifact().digest


def test_a_cache_that_can_only_be_read_is_served(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bucket.upload(artifact())
    load(residents(bucket, tmp_path), bucket.uri)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert load(gone(tmp_path), bucket.uri).digest == artifact().digest
    assert (tmp_path / artifact().digest).is_dir()


def test_the_cache_forgets_what_was_used_longest_ago_but_not_what_is_needed(tmp_path: Path):
    policies = [artifact(seed=seed) for seed in range(4)]
    size = max(sum(len(content) for content in policy.files.values()) for policy in policies)
    cache = PolicyCache(tmp_path, 2 * size + 100)
    for policy in policies[:2]:
        cache.keep(policy, "s3://b/one", policy.digest, ())
    assert cache.find("", policies[0].digest) == policies[0]

    cache.keep(policies[2], "s3://b/one", None, ())
    assert [cache.find("", policy.digest) is not None for policy in policies[:3]] == [True, False, True]

    cache.keep(policies[3], "s3://b/two", None, {policies[0].digest, policies[2].digest})
    assert all(cache.find("", policies[i].digest) for i in (0, 2, 3))
    assert cache.find("s3://b/one", None) == policies[2]
    assert cache.find("s3://b/two", None) == policies[3]
    assert cache.find("s3://b/one", policies[1].digest) is None
    assert cache.find("s3://b/three", None) is None


def test_nothing_outside_of_the_cache_is_touched(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    cache = PolicyCache(tmp_path / "cache", LARGE)
    for digest in ("../outside", str(outside), "..", ""):
        assert cache.find("source", digest) is None
    assert (outside / "kept").exists()


def test_answers_go_on_while_policies_are_loaded_and_swapped(bucket: Bucket, tmp_path: Path):
    """Each answer is wholly of one policy, the one that it says, and none is lost."""
    policies = [artifact(seed=seed) for seed in range(2)]
    for i, policy in enumerate(policies):
        for name, content in policy.files.items():
            bucket.put(f"{i}/{name}", content)
    expected = {policy.digest: answers(policy.policy()) for policy in policies}
    threads: set[int] = set()

    async def serve() -> tuple[int, set[str]]:
        into = residents(bucket, tmp_path)
        into.swap(await into.load(f"{bucket.uri}/0"))
        done = asyncio.Event()

        async def swap() -> None:
            for turn in range(1, 7):
                into.swap(await into.load(f"{bucket.uri}/{turn % 2}"))
            done.set()

        swapping = asyncio.create_task(swap())
        count, seen = 0, set[str]()
        while not done.is_set():
            policy = into.current
            assert policy is not None
            assert answers(policy) == pytest.approx(expected[policy.digest])
            seen.add(policy.digest)
            threads.add(threading.get_ident())
            count += 1
            await asyncio.sleep(0)
        await swapping
        return count, seen

    count, seen = asyncio.run(serve())
    assert seen == set(expected)
    # The loop was free in between: it would be a handful if loading held it up.
    assert count > 60
    assert len(threads) == 1


def test_two_loads_at_once_both_come(tmp_path: Path):
    for i in range(2):
        write_folder(artifact(seed=i), tmp_path / str(i))

    async def both() -> list[str]:
        into = residents()
        loaded = await asyncio.gather(*(into.load(str(tmp_path / str(i))) for i in range(2)))
        return [policy.digest for policy in loaded]

    assert asyncio.run(both()) == [artifact(seed=i).digest for i in range(2)]


def test_a_place_is_read_from_the_variables_of_aws():
    assert Server.from_environment({}) == Server(None, "us-east-1")
    both = {"AWS_ENDPOINT_URL": "http://all", "AWS_ENDPOINT_URL_S3": "http://s3", "AWS_REGION": "eu-1"}
    assert Server.from_environment(both) == Server("http://s3", "eu-1")
    assert Server.from_environment({"AWS_ENDPOINT_URL": "http://all"}).endpoint == "http://all"
