"""How a trainer ends: its exit code, and what it says of it, through the whole of `run`."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ratchet_trainer.main
import ratchet_trainer.resume
from fragments import SPACES, evaluation, rollout
from ratchet_trainer.board import Board
from ratchet_trainer.main import run
from ratchet_trainer.metrics import Metrics
from ratchet_trainer.web import serve
from redis import Redis
from redisserver import RedisServer, free_port
from s3server import S3Server
from safetensors.numpy import load as load_safetensors
from trainerjob import configuration, job

from ratchet.api.v1alpha1 import TrainerStatus, TrainingConfig
from ratchet.checkpoints import CheckpointStore
from ratchet.experience import WorkerChannel, encode
from ratchet.policies.artifact import WEIGHTS

STARTING = TrainerStatus(uid="1f2e", attempt=1, epoch=0, state="Starting")
PATIENCE_SECONDS = 60


@pytest.fixture
def environment(tmp_path: Path, s3: S3Server, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RATCHET_S3_CREDENTIALS_DIR", str(s3.credentials(tmp_path / "credentials")))
    return {
        **configuration(tmp_path, job(s3.endpoint)),
        "REDIS_URL": redis_server.url,
        "RATCHET_TERMINATION_LOG": str(tmp_path / "last-words"),
        "RATCHET_PORT": str(free_port()),
    }


def ends(environment: dict[str, str], stop: threading.Event | None = None) -> tuple[int, str]:
    code = run(environment, stop or threading.Event())
    last_words = Path(environment["RATCHET_TERMINATION_LOG"])
    return code, last_words.read_text() if last_words.exists() else ""


def test_without_a_configuration_it_ends_with_10(environment: dict[str, str]):
    code, last_words = ends({**environment, "RATCHET_CONFIG": "/nowhere/job.json"})
    assert code == 10
    assert last_words == "/nowhere/job.json can't be read (No such file or directory): set RATCHET_CONFIG"


def test_without_a_redis_url_it_ends_with_10(environment: dict[str, str]):
    code, last_words = ends({**environment, "REDIS_URL": ""})
    assert code == 10
    assert "set RATCHET_REDIS_URL_FILE" in last_words


def test_when_storage_denies_it_ends_with_11(environment: dict[str, str], tmp_path: Path):
    (tmp_path / "credentials" / "AWS_SECRET_ACCESS_KEY").write_text("not-the-secret")
    code, last_words = ends(environment)
    assert code == 11
    assert "Correct the keys in the Secret of checkpoint.s3.secretRef" in last_words
    assert "not-the-secret" not in last_words


def test_when_redis_refuses_the_password_it_ends_with_13(environment: dict[str, str], redis: Redis):
    url = environment["REDIS_URL"].replace("//", "//:hunter2@")
    redis.config_set("requirepass", "another")
    try:
        code, last_words = ends({**environment, "REDIS_URL": url})
    finally:
        redis.config_set("requirepass", "")
    assert code == 13
    assert "Redis refused the user or password" in last_words
    assert "hunter2" not in last_words


def test_when_no_checkpoint_is_whole_it_ends_with_15(
    environment: dict[str, str], tmp_path: Path, s3: S3Server
):
    config = TrainingConfig.model_validate_json((tmp_path / "job.json").read_text())
    key = f"{config.storage_prefix}/manifests/000000000100-1-100.json"
    s3.client().put_object(Bucket="ratchet", Key=key, Body=b"{")
    code, last_words = ends(environment)
    assert code == 15
    assert "none of the 1 checkpoints" in last_words


def test_what_nobody_thought_of_ends_with_1_and_its_name(environment: dict[str, str]):
    with serve(Board(STARTING), Metrics("a", "b").registry, 0) as taken:
        code, last_words = ends({**environment, "RATCHET_PORT": str(taken.server_port)})
        taken.shutdown()
    assert code == 1
    assert last_words.startswith("OSError: ")


def test_asked_to_end_before_any_worker_came_it_ends_with_0(environment: dict[str, str], redis: Redis):
    stop = threading.Event()
    stop.set()
    assert ends(environment, stop) == (0, "")


def test_asked_to_end_while_redis_does_not_answer_it_ends_with_0(environment: dict[str, str]):
    stop = threading.Event()
    stop.set()
    assert ends({**environment, "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}, stop) == (0, "")


# With one worker


class Training:
    """`run` in a thread, with a worker that answers every ticket by hand-made fragments of six steps."""

    def __init__(self, environment: dict[str, str], s3: S3Server, redis: Redis, **changes: Any) -> None:
        folder = Path(environment["RATCHET_CONFIG"]).parent
        small = {
            "environment": {"id": "CartPole-v1", "vectorSize": 2},
            "algorithm": {
                "ppo": {"rolloutSteps": 3, "minibatchSize": 6, "epochs": 1},
                "network": {"hidden": [4]},
            },
            "evaluation": {"everySteps": 6, "episodes": 2},
            **changes,
        }
        self.environment = environment | configuration(folder, job(s3.endpoint, **small))
        config = TrainingConfig.model_validate_json((folder / "job.json").read_text())
        self.store = CheckpointStore(s3.client(), config.checkpoint.s3, config.storage_prefix)
        self.worker = WorkerChannel(redis, config.key_prefix)

    def end(self, reward: Callable[[], float] = lambda: 1.0) -> tuple[int, str]:
        """Answers tickets until the trainer ends; its exit code and last words."""
        ended: list[tuple[int, str]] = []
        stop = threading.Event()
        # The pages of a trainer that ended within this process keep their port.
        environment = self.environment | {"RATCHET_PORT": str(free_port())}
        thread = threading.Thread(target=lambda: ended.append(ends(environment, stop)))
        thread.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        self.worker.offer_spec(SPACES)
        sequence = 0
        while thread.is_alive():
            if time.monotonic() > deadline:
                stop.set()
            ticket = self.worker.take(0.1)
            weights = self.worker.weights(None)
            if ticket is None or weights is None:
                continue
            sequence += 1
            header: dict[str, Any] = {"sequence": sequence, "version": weights.version, "ticket": ticket.id}
            fragment = evaluation(**header) if ticket.kind == "evaluate" else rollout(**header)
            if ticket.kind == "rollout":
                fragment.columns["reward"][:] = reward()
            self.worker.deliver(ticket.epoch, encode(fragment))
        assert not stop.is_set(), f"it did not end by itself: {ended}"
        return ended[0]


@pytest.fixture
def train(environment: dict[str, str], s3: S3Server, redis: Redis, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ratchet_trainer.main, "UNHEARD_SECONDS", 0.1)
    return lambda **changes: Training(environment, s3, redis, **changes)


def test_a_finished_trainer_that_nobody_asks_leaves_its_result_and_says_it_again(
    train: Callable[..., Training],
):
    training = train(stop={"maxSteps": 12})

    code, last_words = training.end()

    assert code == 0
    result = TrainerStatus.model_validate_json(last_words)
    assert (result.state, result.finished_reason) == ("Finished", "MaxStepsReached")
    assert (result.progress.steps, result.progress.fragments_accepted) == (12, 2)
    assert result.evaluation.latest is not None
    assert result.evaluation.latest.mean_return == 2.5
    assert result.checkpoints.latest is not None
    assert result.checkpoints.latest.name == training.store.names()[-1]

    code, again = training.end()
    assert code == 0
    assert json.loads(again)["progress"] == json.loads(last_words)["progress"]


def test_nan_in_the_loss_ends_it_with_12_and_the_last_good_checkpoint_stays(train: Callable[..., Training]):
    training = train(stop={"maxSteps": 10**9})

    code, last_words = training.end(lambda: float("nan") if training.store.names() else 1.0)

    assert code == 12
    status, sentence = last_words.splitlines()
    assert "reward" in sentence
    stored = TrainerStatus.model_validate_json(status).checkpoints.latest
    assert stored is not None
    assert stored.name == training.store.names()[-1], "nobody asked between this checkpoint and the end"
    kept = training.store.newest()
    assert kept is not None
    assert kept.passed_over == ()
    assert all(np.isfinite(value).all() for value in load_safetensors(kept.blobs[WEIGHTS]).values())
    code, _ = training.end(lambda: float("nan"))
    assert code == 12, "the next one goes on from it, and meets the same"


def test_a_checkpoint_of_another_release_ends_it_with_15(
    train: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
):
    training = train(stop={"maxSteps": 6})
    training.end()
    monkeypatch.setattr(ratchet_trainer.resume, "SCHEMA", 2)

    code, last_words = training.end()

    assert code == 15
    assert "has schema 1, and this trainer reads 2: go on with the release that wrote it" in last_words


@pytest.mark.parametrize("damage", [lambda body: body[: len(body) // 2], lambda body: b"x" + body[1:]])
@pytest.mark.parametrize("part", ["manifests", "blobs"])
def test_a_broken_checkpoint_is_passed_over_for_the_one_before_and_nothing_counts_twice(
    train: Callable[..., Training], s3: S3Server, part: str, damage: Callable[[bytes], bytes]
):
    training = train(stop={"maxSteps": 12})
    training.end()
    *_, before, newest = training.store.names()
    loaded = training.store.newest()
    assert loaded is not None
    keys = {
        "manifests": f"manifests/{newest}.json",
        "blobs": f"blobs/sha256/{loaded.stored.manifest.blobs['state'].sha256}",
    }
    body = training.store.get_file(keys[part])
    assert body is not None
    training.store.put_file(keys[part], damage(body))

    code, last_words = training.end()

    assert code == 0
    result = TrainerStatus.model_validate_json(last_words)
    assert result.resumed_from == f"manifests/{before}.json"
    assert [sentence.split()[0] for sentence in result.passed_over] == [newest]
    assert (result.progress.steps, result.progress.fragments_accepted) == (12, 2)
