"""The trainer's edges: settings, saver, resume, pages."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fragments import SPACES, rollout
from prometheus_client.parser import text_string_to_metric_families
from ratchet_trainer.board import STUCK_AFTER_SECONDS, Board
from ratchet_trainer.intake import Intake
from ratchet_trainer.kept import KeptFile
from ratchet_trainer.metrics import Metrics
from ratchet_trainer.resume import Resumed
from ratchet_trainer.saving import Saver, Snapshot
from ratchet_trainer.settings import read_settings
from ratchet_trainer.trackers import TensorBoard, tracker
from ratchet_trainer.web import serve
from s3server import HeldStore, S3Server
from trainerjob import configuration, job

from ratchet.api.v1alpha1 import PoolExperience, TrainerStatus, TrainingConfig
from ratchet.api.v1alpha1.training import S3, Checkpoint
from ratchet.api.v1alpha1.trainingjob import Checkpoints, Evaluations, Progress
from ratchet.checkpoints import (
    CheckpointsUnreadable,
    Lineage,
    Loaded,
    StorageDenied,
    StorageUnavailable,
    Superseded,
)
from ratchet.configuration import InvalidConfiguration
from ratchet.policies import PolicySpec, parameter_shapes, value_shapes
from ratchet.policies.artifact import read

# Settings


def test_settings_have_defaults_and_read_their_variables(tmp_path: Path):
    least = configuration(tmp_path, job())
    settings = read_settings(least)
    assert (settings.attempt, settings.port, settings.device, settings.tracker) == (1, 8080, "CPU", None)

    settings = read_settings(
        {
            **least,
            "RATCHET_ATTEMPT": "3",
            "RATCHET_PORT": "81",
            "RATCHET_DEVICE": "GPU",
            "RATCHET_TRACKER": "wandb",
        }
    )
    assert (settings.attempt, settings.port, settings.device, settings.tracker) == (3, 81, "GPU", "wandb")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("{", r"job.json is wrong at its root"),
        (job(stop={}), r"job.json is wrong at stop: .*training would never end"),
        (job(checkpoint={"s3": {}}), r"job.json is wrong at checkpoint.s3.bucket: Field required"),
    ],
)
def test_a_wrong_configuration_says_where(tmp_path: Path, value: Any, sentence: str):
    with pytest.raises(InvalidConfiguration, match=sentence):
        read_settings(configuration(tmp_path, value))


def test_active_time_counts_from_the_moment_that_is_given(tmp_path: Path):
    least = configuration(tmp_path, job())
    assert read_settings(least).active_since is None

    then = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    since = read_settings({**least, "RATCHET_ACTIVE_SINCE": then}).active_since
    assert since is not None
    assert time.monotonic() - since == pytest.approx(3600, abs=60)

    with pytest.raises(InvalidConfiguration, match="RATCHET_ACTIVE_SINCE must be a time"):
        read_settings({**least, "RATCHET_ACTIVE_SINCE": "yesterday"})


@pytest.mark.parametrize("name", ["RATCHET_ATTEMPT", "RATCHET_PORT"])
def test_numbers_must_be_numbers(tmp_path: Path, name: str):
    with pytest.raises(InvalidConfiguration, match=name):
        read_settings({**configuration(tmp_path, job()), name: "one"})


def test_a_tracker_that_is_none_or_not_installed_is_named():
    config = TrainingConfig.model_validate(job())
    assert tracker(None, config) is None
    with pytest.raises(InvalidConfiguration, match="'comet': write one of mlflow, wandb"):
        tracker("comet", config)
    with pytest.raises(InvalidConfiguration, match=r"install ratchet-trainer\[wandb\]"):
        tracker("wandb", config)


def test_tensorboard_files_hold_what_was_logged():
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    board = TensorBoard("attempt-1-epoch-2")
    board.log({"episode_return_mean": 21.5}, steps=640)
    [(key, content)] = board.files().items()
    assert key.startswith("tensorboard/attempt-1-epoch-2/events.out.tfevents")
    [file] = list(board._folder.iterdir())
    assert file.read_bytes() == content
    events = [event for event in EventFileLoader(str(file)).Load() if event.step == 640]
    assert [value.tag for value in events[0].summary.value] == ["episode_return_mean"]


# Saver and resume


@pytest.fixture
def storage(s3: S3Server) -> HeldStore:
    return HeldStore(s3)


def saver_with(storage: HeldStore, kept: Callable[[], frozenset[str] | None], keep_for: str = "0s") -> Saver:
    settings = Checkpoint(s3=S3(bucket="ratchet"), keep_last=1, keep_for=keep_for)
    lineage = Lineage(namespace="default", job="cartpole", uid="1f2e", attempt=1)
    return Saver(storage, settings, lineage, lambda: {"tensorboard/events": b"figures"}, kept)


@pytest.fixture
def saver(storage: HeldStore) -> Iterator[Saver]:
    yield saver_with(storage, frozenset)
    storage.goes_on.set()


POLICY = PolicySpec(observation=SPACES.observation, action=SPACES.action)
PARAMETERS = {
    name: np.full(shape, 0.1, np.float32)
    for name, shape in (parameter_shapes(POLICY) | value_shapes(POLICY)).items()
}


def intake() -> Intake:
    found = Intake(max_policy_lag=0)
    for sequence in (1, 2, 2):
        found.offer(rollout(sequence=sequence), 3, 0.0)
    found.take_batch(1, 3)
    return found


def progress_json(saved: Checkpoints | None = None, finished: Any = None) -> dict[str, Any]:
    return Resumed.to_json(
        environment=SPACES, intake=intake(), evaluations=Evaluations(), next_evaluation=700, version=4,
        updates=5, active_seconds=1.5, finished=finished, progress=Progress(steps=6),
        saved=saved or Checkpoints(),
    )  # fmt: skip


def snapshot(steps: int, mean_return: float | None = None, **changes: Any) -> Snapshot:
    values: dict[str, Any] = {
        "why": "interval", "epoch": 1, "version": steps, "steps": steps, "mean_return": mean_return,
        "tensors": {"w": torch.arange(3.0)}, "policy": PARAMETERS, "policy_spec": POLICY,
        "observations": np.eye(2, 4, dtype=np.float32),
        "progress": progress_json(), "metrics": {"policy_loss": 0.5},
    }  # fmt: skip
    return Snapshot(**{**values, **changes})


def newest(storage: HeldStore) -> Loaded:
    loaded = storage.newest()
    assert loaded is not None
    return loaded


def test_training_goes_on_while_a_checkpoint_is_stored(saver: Saver, storage: HeldStore):
    storage.goes_on.clear()
    saver.begin(snapshot(100))
    assert saver.busy
    assert saver.saved == Checkpoints()

    storage.goes_on.set()
    saver.wait()

    assert not saver.busy
    assert saver.saved.latest is not None
    assert saver.saved.latest.steps == 100
    assert saver.saved.latest.digest == f"sha256:{newest(storage).stored.digest}"


def test_the_best_is_remembered_and_what_is_neither_is_removed(saver: Saver, storage: HeldStore):
    for steps, mean_return in ((100, 9.0), (200, 4.0), (300, None)):
        saver.begin(snapshot(steps, mean_return))
    saver.wait()
    assert saver.saved.best is not None
    assert saver.saved.latest is not None
    assert (saver.saved.best.steps, saver.saved.latest.steps) == (100, 300)
    assert storage.names() == ["000000000100-1-100", "000000000300-1-300"]


def test_what_servers_start_from_is_not_removed_and_nothing_is_while_nobody_can_tell(
    storage: HeldStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    file = tmp_path / "kept.json"
    saver = saver_with(storage, KeptFile(file).names)
    for steps in (100, 200, 300):
        saver.begin(snapshot(steps))
    saver.wait()
    assert [name[:12] for name in storage.names()] == ["000000000100", "000000000200", "000000000300"]
    assert [one.message[:25] for one in caplog.records] == ["no checkpoint is removed,"]

    file.write_text('["000000000100-1-100"]')
    saver.begin(snapshot(400))
    saver.wait()
    assert storage.names() == ["000000000100-1-100", "000000000400-1-400"]

    file.write_text("[]")
    saver.begin(snapshot(500))
    saver.wait()
    assert storage.names() == ["000000000500-1-500"]


def test_what_was_among_the_last_a_moment_ago_is_not_removed(storage: HeldStore):
    saver = saver_with(storage, frozenset, keep_for="1h")
    for steps in (100, 200):
        saver.begin(snapshot(steps))
    saver.wait()
    assert storage.names() == ["000000000100-1-100", "000000000200-1-200"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "["])
def test_a_list_of_what_is_kept_that_is_none_says_nothing(text: str, tmp_path: Path):
    file = tmp_path / "kept.json"
    file.write_text(text)
    assert KeptFile(file).names() is None


def test_where_nobody_keeps_a_list_nothing_has_to_stay():
    assert KeptFile(None).names() == frozenset()


def test_companions_are_stored_beside_the_checkpoint(saver: Saver, storage: HeldStore, s3: S3Server):
    saver.begin(snapshot(100))
    saver.wait()
    key = f"{storage.prefix}/tensorboard/events"
    assert s3.client().get_object(Bucket="ratchet", Key=key)["Body"].read() == b"figures"


def test_storage_that_does_not_answer_is_a_complaint_and_no_error(saver: Saver, storage: HeldStore):
    storage.failure = StorageUnavailable("bucket ratchet: EndpointConnectionError")
    saver.begin(snapshot(100))
    saver.wait()
    assert (
        saver.complaint == "checkpoint at 100 steps was not stored: bucket ratchet: EndpointConnectionError"
    )

    storage.failure = None
    saver.begin(snapshot(200))
    saver.wait()
    assert saver.complaint == ""


@pytest.mark.parametrize("failure", [StorageDenied("no"), Superseded("epoch 2"), ValueError("a bug")])
def test_a_failure_for_good_reaches_the_learner_once(saver: Saver, storage: HeldStore, failure: Exception):
    storage.failure = failure
    saver.begin(snapshot(100))
    with pytest.raises(type(failure), match=str(failure)):
        saver.wait()
    saver.check()


def test_what_a_trainer_stores_another_reads(saver: Saver, storage: HeldStore):
    earlier = snapshot(50, 9.0)
    saver.begin(earlier)
    saver.wait()
    saver.begin(snapshot(100, 4.0, progress=progress_json(saved=saver.saved)))
    saver.wait()

    resumed = Resumed.read(newest(storage))

    assert resumed.name == "manifests/000000000100-1-100.json"
    assert (resumed.epoch, resumed.version, resumed.updates) == (1, 4, 5)
    assert (resumed.next_evaluation, resumed.active_seconds, resumed.finished) == (700, 1.5, None)
    assert resumed.environment == SPACES
    assert torch.equal(resumed.tensors["w"], torch.arange(3.0))
    assert resumed.intake(0).to_json() == intake().to_json()
    # The best lives on although the newest is another.
    assert resumed.checkpoints == saver.saved
    assert resumed.checkpoints.best is not None
    assert resumed.checkpoints.best.steps == 50


def test_a_checkpoint_holds_a_policy_that_can_be_served_with_observations_from_training(
    saver: Saver, storage: HeldStore
):
    saver.begin(snapshot(100))
    saver.wait()

    loaded = newest(storage)
    artifact = read(loaded.blobs.__getitem__)

    assert artifact.digest == loaded.stored.manifest.blobs["policy.json"].sha256
    lineage = artifact.description.lineage
    assert (lineage.namespace, lineage.job, lineage.steps) == ("default", "cartpole", 100)
    assert lineage.checkpoint == loaded.stored.manifest.name
    assert artifact.policy().has_value
    np.testing.assert_array_equal(Resumed.read(loaded).observations, np.eye(2, 4, dtype=np.float32))


def test_a_checkpoint_of_a_trainer_that_stored_no_observations_resumes(saver: Saver, storage: HeldStore):
    saver.begin(snapshot(100))
    saver.wait()
    loaded = newest(storage)
    del loaded.blobs["golden.safetensors"]
    assert Resumed.read(loaded).observations.shape == (0, 4)


def test_a_checkpoint_of_another_schema_is_refused(saver: Saver, storage: HeldStore):
    saver.begin(snapshot(100, progress={**progress_json(), "schema": 2}))
    saver.wait()
    with pytest.raises(CheckpointsUnreadable, match="has schema 2, and this trainer reads 1"):
        Resumed.read(newest(storage))


@pytest.mark.parametrize(("finished", "state"), [(None, "Starting"), ("MaxStepsReached", "Finished")])
def test_a_resumed_trainer_shows_what_it_knows_before_it_goes_on(
    saver: Saver, storage: HeldStore, finished: Any, state: str
):
    saver.begin(snapshot(100, progress=progress_json(finished=finished)))
    saver.wait()
    shown = Resumed.read(newest(storage)).as_status(STARTING)
    assert (shown.state, shown.finished_reason) == (state, finished)
    assert shown.progress.steps == 6
    assert shown.resumed_from == "manifests/000000000100-1-100.json"


# Pages

STARTING = TrainerStatus(uid="1f2e", attempt=1, epoch=0, state="Starting")
TRAINING = STARTING.model_copy(
    update={
        "state": "Training",
        "epoch": 2,
        "progress": Progress(steps=640, updates=5, mean_return=21.5, fragments_accepted=10),
        "pools": {"pool": PoolExperience(steps_per_second=5.0, workers=3)},
    }
)


@pytest.fixture
def board() -> Board:
    return Board(STARTING)


@pytest.fixture
def ask(board: Board) -> Iterator[Callable[[str], tuple[int, str]]]:
    metrics = Metrics("default", "cartpole")
    metrics.show(TRAINING, None)
    metrics.show(TRAINING, None)
    server = serve(board, metrics.registry, 0)

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    yield get
    server.shutdown()
    server.server_close()


def test_status_is_what_was_pinned_last(board: Board, ask: Callable[[str], tuple[int, str]]):
    board.pin(TRAINING)
    code, body = ask("/status")
    assert code == 200
    assert TrainerStatus.model_validate_json(body) == TRAINING
    assert json.loads(body)["progress"]["fragmentsAccepted"] == 10


def test_a_trainer_knows_whether_it_is_asked_for_its_status(
    board: Board, ask: Callable[[str], tuple[int, str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(board, "_asked", board._asked - 1000)
    ask("/metrics")
    assert board.seconds_unasked > 1000

    ask("/status")
    assert board.seconds_unasked < 1000


def test_metrics_can_be_parsed_and_counters_count_once(ask: Callable[[str], tuple[int, str]]):
    code, body = ask("/metrics")
    assert code == 200
    families = {family.name: family for family in text_string_to_metric_families(body)}
    [steps] = [s for s in families["ratchet_trainer_steps"].samples if s.name.endswith("_total")]
    assert steps.value == 640
    assert steps.labels == {"namespace": "default", "job_name": "cartpole"}
    assert families["ratchet_trainer_episode_return_mean"].samples[0].value == 21.5
    assert families["ratchet_trainer_workers"].samples[0].value == 3
    assert families["ratchet_trainer_evaluation_return_mean"].samples == []  # there was none yet


def test_probes_tell_starting_from_ready_and_alive_from_stuck(
    board: Board, ask: Callable[[str], tuple[int, str]], monkeypatch: pytest.MonkeyPatch
):
    assert ask("/healthz")[0] == 200
    assert ask("/readyz") == (503, "starting\n")
    board.pin(TRAINING)
    assert ask("/readyz?verbose=1") == (200, "ok\n")

    monkeypatch.setattr(board, "_beat", board._beat - STUCK_AFTER_SECONDS)
    assert ask("/healthz") == (503, "the learner's loop stands still\n")


def test_another_page_says_which_there_are(ask: Callable[[str], tuple[int, str]]):
    code, body = ask("/")
    assert code == 404
    assert "/status" in body
