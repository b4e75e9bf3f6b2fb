"""A worker from ticket to fragment, against a real Redis, and how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ratchet_rollout.environments import Environments, make
from ratchet_rollout.errors import ConfigError, Interrupted
from ratchet_rollout.main import run
from ratchet_rollout.worker import Identity, Shutdown, Worker
from redis import Redis
from redisserver import RedisServer

from ratchet import weights
from ratchet.api.v1alpha1 import TrainingConfig
from ratchet.experience import Fragment, LearnerChannel, Ticket, WorkerChannel
from ratchet.policies import PolicySpec, parameter_shapes

STEPS, COPIES = 8, 2


def config(**environment: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "namespace": "default",
            "name": "cartpole",
            "uid": "1f2e",
            "environment": {"id": "CartPole-v1", "vectorSize": COPIES, **environment},
            "algorithm": {"ppo": {"rolloutSteps": STEPS}, "network": {"hidden": [4]}},
            "evaluation": {"episodes": 3},
            "stop": {"maxSteps": 1000},
            "checkpoint": {"s3": {"bucket": "bucket"}},
            "fragmentsPerBatch": 1,
        }
    )


def blob(environments: Environments, hidden: int = 4, seed: int = 0) -> bytes:
    spec = PolicySpec(
        observation=environments.spec.observation, action=environments.spec.action, hidden=(hidden,)
    )
    rng = np.random.default_rng(seed)
    values = {name: rng.standard_normal(shape, np.float32) for name, shape in parameter_shapes(spec).items()}
    return weights.encode(values, 1)


class Job:
    """A learner at one end and one worker, in a thread of its own, at the other."""

    def __init__(self, server: RedisServer, settings: TrainingConfig | None = None) -> None:
        self.config = settings or config()
        self.server = server
        self.learner = LearnerChannel(server.client(), self.config.key_prefix)
        self.learner.begin(0)
        self.shutdown = Shutdown(grace=0)
        self.failure: list[BaseException] = []
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.worker = Worker(
                self.config,
                Identity("pool", "4", "incarnation"),
                WorkerChannel(self.server.client(), self.config.key_prefix),
                self.shutdown,
            )
            self.worker.run()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.failure.append(error)

    def publish(self, version: int, seed: int = 0) -> None:
        self.learner.publish(version, blob(make(self.config.environment, 1), seed=seed))

    def issue(self, *numbers: int, **fields: Any) -> None:
        values = {"kind": "rollout", "version": 0, "epoch": self.learner.epoch, **fields}
        self.learner.issue([Ticket(id=number, **values) for number in numbers])

    def fragments(self, count: int) -> list[Fragment]:
        found: list[Fragment] = []
        while len(found) < count and not self.failure:
            for entry in self.learner.read(count, 100):
                assert isinstance(entry.outcome, Fragment), entry.outcome
                found.append(entry.outcome)
                self.learner.settle([entry.id])
        assert not self.failure, self.failure
        return found

    def stop(self) -> None:
        self.shutdown.request()
        if self.thread.ident is not None:
            self.thread.join(30)
            assert not self.thread.is_alive()


@pytest.fixture
def job(redis: Redis, redis_server: RedisServer) -> Iterator[Job]:
    job = Job(redis_server)
    yield job
    job.stop()


def test_tickets_become_numbered_fragments_of_the_newest_policy(job: Job):
    job.publish(5)
    job.issue(11, 12)
    job.thread.start()
    first, second = job.fragments(2)
    job.publish(6)
    job.issue(13)
    [third] = job.fragments(1)

    headers = [fragment.header for fragment in (first, second, third)]
    assert [header.ticket for header in headers] == [11, 12, 13]
    assert [header.sequence for header in headers] == [1, 2, 3]
    assert [header.version for header in headers] == [5, 5, 6]
    assert {header.worker for header in headers} == {"pool/4"}
    assert {header.incarnation for header in headers} == {"incarnation"}
    assert all(header.seconds > 0 and header.waited >= 0 for header in headers)
    assert first.columns["observation"].shape == (STEPS, COPIES, 4)
    # The episodes go on from one fragment to the next.
    np.testing.assert_array_equal(first.columns["last_observation"], second.columns["observation"][0])
    np.testing.assert_array_equal(second.columns["last_observation"], third.columns["observation"][0])


def test_an_evaluation_plays_the_episodes_that_the_ticket_asks_for(job: Job):
    job.publish(5)
    job.issue(1, kind="evaluate", episodes=5, seed=3, deterministic=True)
    job.issue(2, kind="evaluate", episodes=5, seed=3, deterministic=True)
    job.issue(3, kind="evaluate")
    job.issue(4, kind="evaluate", actions=True)
    job.thread.start()
    by_ticket = {fragment.header.ticket: fragment for fragment in job.fragments(4)}
    assert {fragment.header.kind for fragment in by_ticket.values()} == {"evaluation"}
    assert {fragment.header.n for fragment in by_ticket.values()} == {0}
    one, same = by_ticket[1].columns, by_ticket[2].columns
    assert len(one["episode_return"]) == 5
    np.testing.assert_array_equal(one["episode_return"], same["episode_return"])
    assert len(by_ticket[3].columns["episode_return"]) == 3
    # A trainer that does not know of them would refuse the fragment.
    assert "action_sum" not in by_ticket[3].columns
    assert by_ticket[4].columns["action_sum"].sum() == by_ticket[4].columns["episode_length"].sum()


def test_an_evaluation_does_not_disturb_the_training_episodes(redis: Redis, redis_server: RedisServer):
    def second_fragment(between: Callable[[Job], None]) -> bytes:
        redis.flushall()
        job = Job(redis_server)
        job.publish(1)
        job.issue(1)
        job.thread.start()
        job.fragments(1)
        between(job)
        job.issue(3)
        [fragment] = job.fragments(1)
        job.stop()
        return fragment.columns["observation"].tobytes()

    def evaluation(job: Job) -> None:
        job.issue(2, kind="evaluate", episodes=2)
        job.fragments(1)

    assert second_fragment(evaluation) == second_fragment(lambda _: None)


def test_the_policy_says_how_the_worker_acts(redis: Redis, redis_server: RedisServer):
    def first_actions(seed: int) -> list[int]:
        redis.flushall()
        job = Job(redis_server)
        job.publish(1, seed)
        job.issue(1)
        job.thread.start()
        [fragment] = job.fragments(1)
        job.stop()
        return fragment.columns["action"].ravel().tolist()

    assert first_actions(0) == first_actions(0)
    assert first_actions(0) != first_actions(7)


def test_a_ticket_of_an_older_epoch_is_left_and_the_worker_goes_on(job: Job, redis: Redis):
    job.publish(5)
    stale = Ticket(kind="rollout", id=1, epoch=job.learner.epoch, version=5)
    job.learner.begin(0)
    redis.rpush(f"{job.config.key_prefix}tickets", stale.to_json())
    job.publish(5)
    job.issue(2)
    job.thread.start()
    [fragment] = job.fragments(1)
    # The first of its sequence: nothing was played for the older ticket.
    assert (fragment.header.ticket, fragment.header.sequence) == (2, 1)


def test_a_worker_lives_through_the_loss_of_redis(job: Job, redis: Redis):
    job.publish(5)
    job.issue(1)
    job.thread.start()
    job.fragments(1)
    redis.flushall()
    job.learner.begin(0)
    job.publish(5)
    job.issue(2)
    [fragment] = job.fragments(1)
    assert (fragment.header.ticket, fragment.header.sequence) == (2, 2)
    while job.learner.environment_spec() is None:
        assert not job.failure


def test_the_worker_says_what_the_spaces_are(job: Job):
    job.thread.start()
    while (spec := job.learner.environment_spec()) is None:
        assert not job.failure
    assert spec.action.n == 2
    assert spec.reward_threshold == 475.0


def test_a_worker_of_other_spaces_ends_with_a_sentence(job: Job, redis: Redis, redis_server: RedisServer):
    job.thread.start()
    while job.learner.environment_spec() is None:
        assert not job.failure
    other = Worker(
        config(id="Acrobot-v1"),
        Identity("spot", "0"),
        WorkerChannel(redis, job.config.key_prefix),
        Shutdown(),
    )
    with pytest.raises(ConfigError, match="same image"):
        other.run()


def test_a_policy_of_another_network_ends_the_worker_with_a_sentence(job: Job):
    job.learner.publish(1, blob(make(job.config.environment, 1), hidden=9))
    job.issue(1)
    job.thread.start()
    job.thread.join(30)
    [failure] = job.failure
    assert isinstance(failure, ConfigError)
    assert "policy.0.bias" in str(failure)


def test_an_endless_evaluation_is_interrupted_when_asked_to_end(redis: Redis, redis_server: RedisServer):
    job = Job(redis_server, config(id=None, entryPoint="rolloutprobes:Endless"))
    job.publish(1)
    job.issue(1, kind="evaluate", episodes=10**4, deterministic=True)
    job.thread.start()
    while job.learner.outstanding():
        assert not job.failure
    job.stop()
    assert [type(failure) for failure in job.failure] == [Interrupted]


# --- shutdown


def test_grace_is_given_to_what_is_being_made():
    now = [100.0]
    shutdown = Shutdown(grace=5, clock=lambda: now[0])
    shutdown.check()
    shutdown.request()
    now[0] = 104.0
    shutdown.request()
    shutdown.check()
    now[0] = 105.0
    with pytest.raises(Interrupted):
        shutdown.check()


def test_a_pause_between_tries_ends_when_asked_to():
    shutdown = Shutdown()
    shutdown.request()
    with pytest.raises(Interrupted):
        shutdown.sleep(3600)


# --- the process


def environment(tmp_path: Path, url: str, settings: dict[str, Any] | str) -> dict[str, str]:
    path = tmp_path / "job.json"
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return {
        "RATCHET_CONFIG": str(path),
        "RATCHET_POOL": "pool",
        "RATCHET_TERMINATION_LOG": str(tmp_path / "last-words"),
        "REDIS_URL": url,
    }


@pytest.mark.parametrize(
    ("changes", "settings", "code", "words"),
    [
        ({}, config(id="CartPole-v7").to_wire(), 10, "CartPole-v1"),
        ({}, "{", 10, "job.json is wrong at its root"),
        ({}, {**config().to_wire(), "uid": 7}, 10, "job.json is wrong at uid"),
        ({"RATCHET_CONFIG": "/nowhere/job.json"}, "", 10, "set RATCHET_CONFIG"),
        ({"REDIS_URL": ""}, config().to_wire(), 10, "RATCHET_REDIS_URL_FILE"),
    ],
)
def test_a_job_that_cannot_work_ends_with_its_code_and_last_words(
    tmp_path: Path, changes: dict[str, str], settings: Any, code: int, words: str
):
    variables = environment(tmp_path, "redis://127.0.0.1:1/0", settings) | changes
    assert run(variables, Shutdown()) == code
    last_words = (tmp_path / "last-words").read_text()
    assert words in last_words
    assert "\n" not in last_words


def test_a_wrong_password_ends_with_the_code_of_redis(
    tmp_path: Path, redis: Redis, redis_server: RedisServer
):
    url = redis_server.url.replace("//", "//:hunter2@")
    redis.config_set("requirepass", "another")
    try:
        code = run(environment(tmp_path, url, config().to_wire()), Shutdown())
    finally:
        redis.config_set("requirepass", "")
    assert code == 13
    assert "hunter2" not in (tmp_path / "last-words").read_text()


def test_the_program_works_and_ends_on_sigterm_with_json_lines(
    tmp_path: Path, redis: Redis, redis_server: RedisServer
):
    settings = config()
    learner = LearnerChannel(redis, settings.key_prefix)
    learner.begin(0)
    learner.publish(1, blob(make(settings.environment, 1)))
    learner.issue([Ticket(kind="rollout", id=1, epoch=learner.epoch, version=1)])
    variables = {**os.environ, **environment(tmp_path, redis_server.url, settings.to_wire())}
    program = Path(sys.executable).with_name("ratchet-rollout")
    process = subprocess.Popen([program], env=variables, stdout=subprocess.PIPE, text=True)
    try:
        while not (entries := learner.read(1, 100)):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    [entry] = entries
    assert isinstance(entry.outcome, Fragment)
    assert entry.outcome.header.worker == f"pool/{socket.gethostname()}"
    assert process.returncode == 143
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["message"] for line in lines] == ["started", "ended as asked"]
    assert lines[0]["worker"] == f"pool/{socket.gethostname()}"


def test_neither_torch_nor_kopf_is_imported():
    code = "import ratchet_rollout.main, sys; sys.exit(bool({'torch', 'kopf', 'boto3'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
