"""Trainer and workers as processes on loopback, with a real Redis and a real S3 server."""

import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from redisserver import RedisServer, free_port
from s3server import S3Server

from ratchet.api.v1alpha1 import RLTrainingJobSpec, TrainerStatus, TrainingConfig
from ratchet.api.v1alpha1.training import S3
from ratchet.checkpoints import CheckpointStore, Stored

PROGRAMS = Path(sys.executable).parent
EXAMPLE = Path(__file__).parents[1] / "examples" / "cartpole-ppo.yaml"
PATIENCE_SECONDS = 90
COPIES, STEPS = 4, 16


def storage(server: S3Server) -> dict[str, str]:
    return {"bucket": "ratchet", "endpoint": server.endpoint}


def cartpole(server: S3Server) -> TrainingConfig:
    """The example that the README begins with."""
    spec = yaml.safe_load(EXAMPLE.read_text())["spec"]
    spec["checkpoint"]["s3"] = storage(server)
    return RLTrainingJobSpec.model_validate(spec).config("default", "cartpole", secrets.token_hex(4))


def pendulum(server: S3Server, **changes: Any) -> TrainingConfig:
    """Small, and endless but for `changes`. Every step of Pendulum counts."""
    return TrainingConfig.model_validate(
        {
            "namespace": "default",
            "name": "pendulum",
            "uid": secrets.token_hex(4),
            "environment": {"id": "Pendulum-v1", "vectorSize": COPIES},
            "algorithm": {
                "ppo": {"rolloutSteps": STEPS, "minibatchSize": COPIES * STEPS, "epochs": 1},
                "network": {"hidden": [8]},
            },
            "evaluation": {"everySteps": 10**9, "episodes": 2},
            "stop": {"maxSteps": 10**9},
            "checkpoint": {"s3": storage(server), "interval": "1s"},
            "fragmentsPerBatch": 1,
            **changes,
        }
    )


@dataclass
class Program:
    """One process of ours, with its log and last words."""

    process: subprocess.Popen[bytes]
    log: Path
    last_words: Path
    port: int

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Asks as the kubelet does; the exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE_SECONDS)

    @property
    def exit_code(self) -> int | None:
        return self.process.poll()


@dataclass
class Job:
    """One job's processes."""

    config: TrainingConfig
    server: S3Server
    redis_server: RedisServer
    folder: Path
    programs: list[Program] = field(default_factory=list[Program])

    def start(self, program: str, **variables: str) -> Program:
        number = len(self.programs)
        folder = self.folder / str(number)
        folder.mkdir()
        (folder / "job.json").write_text(self.config.model_dump_json(by_alias=True))
        log, last_words, port = folder / "log", folder / "last-words", free_port()
        environment = {
            **os.environ,
            "RATCHET_CONFIG": str(folder / "job.json"),
            "REDIS_URL": self.redis_server.url,
            "RATCHET_S3_CREDENTIALS_DIR": str(self.server.credentials(folder / "credentials")),
            "RATCHET_TERMINATION_LOG": str(last_words),
            "RATCHET_PORT": str(port),
            "RATCHET_POOL": "pool",
            **variables,
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [PROGRAMS / program], env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        self.programs.append(Program(process, log, last_words, port))
        return self.programs[-1]

    def start_trainer(self) -> Program:
        self.trainer = self.start("ratchet-trainer")
        return self.trainer

    def start_worker(self, **variables: str) -> Program:
        self.worker = self.start("ratchet-rollout", **variables)
        return self.worker

    def status(self) -> TrainerStatus | None:
        """None while the trainer can't be asked."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.trainer.port}/status", timeout=5) as answer:
                return TrainerStatus.model_validate_json(answer.read())
        except (urllib.error.URLError, OSError):
            return None

    def until(self, condition: Callable[[TrainerStatus], object]) -> TrainerStatus:
        """The first status that fulfils the condition; every one of Pendulum's keeps count."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            status = self.status()
            if status is not None and self.config.environment.id == "Pendulum-v1":
                progress = status.progress
                assert progress.steps == progress.fragments_accepted * COPIES * STEPS
                assert progress.updates == progress.policy_version
            if status is not None and condition(status):
                return status
            if self.trainer.exit_code is not None or time.monotonic() > end:
                logs = "\n".join(f"{p.log}:\n{p.log.read_text()[-2000:]}" for p in self.programs[-3:])
                raise AssertionError(f"trainer: {self.trainer.exit_code}, last status: {status}\n{logs}")
            time.sleep(0.05)

    def until_it_goes_on(self) -> TrainerStatus:
        """A few updates from now."""
        now = self.until(lambda status: status.state != "Starting").progress.updates
        return self.until(lambda status: status.progress.updates >= now + 3)

    def store(self) -> CheckpointStore:
        s3 = S3.model_validate(storage(self.server))
        return CheckpointStore(self.server.client(), s3, self.config.storage_prefix)

    def newest(self) -> Stored:
        loaded = self.store().newest()
        assert loaded is not None
        assert loaded.passed_over == ()
        return loaded.stored

    def key(self, name: str) -> str:
        return self.config.key_prefix + name

    def close(self) -> None:
        for program in self.programs:
            program.kill()


@pytest.fixture(scope="module")
def make_job(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def make(config: TrainingConfig) -> Job:
        folder = tmp_path_factory.mktemp(config.name)
        redis_server = RedisServer(folder, free_port())
        redis_server.start()
        jobs.append(Job(config, s3, redis_server, folder))
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()
        job.redis_server.stop()
