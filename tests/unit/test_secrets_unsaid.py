"""Trainer, worker and policy server as processes at their most talkative: no line that they leave, and no
answer that they give, holds a secret.
"""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
from disguises import disguises
from redis import Redis
from redisserver import RedisServer, free_port
from s3server import S3Server
from servedpolicies import artifact

from ratchet.api.v1alpha1 import ExitCode

# The level is fixed; code of an environment, which runs in the worker, may set another.
TALKATIVE = """
import logging, ratchet.logs as logs
usual = logs.write_json_lines
logs.write_json_lines = lambda: usual(level=logging.DEBUG)
from {program}.main import main
main()
"""
PASSWORD = "p/w+d=of the user"
TOKEN = "session/token+of=someone"
ORDERS = "admin/token+of=the operator"
SECONDS = 120


@pytest.fixture
def in_disorder(redis: Redis, redis_server: RedisServer) -> Iterator[str]:
    """URL of a Redis whose keys are of another type, which is an error that no program expects."""
    for name in ("epoch", "spec"):
        redis.rpush(f"ratchet:default:1f2e:{name}", "a list")
    redis.execute_command("ACL", "SETUSER", "someone", "on", f">{PASSWORD}", "~*", "+@all")
    yield redis_server.url.replace("//", f"//someone:{quote(PASSWORD, safe='')}@")
    redis.execute_command("ACL", "DELUSER", "someone")


def said(program: str, folder: Path, redis_url: str, s3: S3Server) -> str:
    """All that a program prints and leaves behind until it ends by itself."""
    job = {
        "namespace": "default",
        "name": "cartpole",
        "uid": "1f2e",
        "environment": {"id": "CartPole-v1"},
        "algorithm": {},
        "evaluation": {},
        "stop": {"maxSteps": 1000},
        "checkpoint": {"s3": {"bucket": "ratchet", "endpoint": s3.endpoint, "prefix": folder.name}},
        "fragmentsPerBatch": 1,
    }
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "REDIS_URL").write_text(redis_url)
    done = subprocess.run(
        [sys.executable, "-c", TALKATIVE.format(program=program)],
        env={
            **os.environ,
            "RATCHET_CONFIG": str(folder / "job.json"),
            "RATCHET_REDIS_URL_FILE": str(folder / "REDIS_URL"),
            "RATCHET_S3_CREDENTIALS_DIR": str(folder / "s3"),
            "RATCHET_TERMINATION_LOG": str(folder / "last-words"),
            "RATCHET_PORT": str(free_port()),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode > 0, done.stdout
    return done.stdout + (folder / "last-words").read_text()


def assert_unsaid(text: str, *secrets: str) -> None:
    for secret in secrets:
        for form in disguises(secret):
            assert form not in text


@pytest.mark.parametrize("program", ["ratchet_trainer", "ratchet_rollout"])
def test_a_crash_shows_a_traceback_and_no_secret(
    program: str, tmp_path: Path, in_disorder: str, s3: S3Server
):
    s3.credentials(tmp_path / "s3")

    text = said(program, tmp_path, in_disorder, s3)

    assert "Traceback" in text
    assert "WRONGTYPE" in text
    assert_unsaid(text, PASSWORD, in_disorder, s3.secret_key)


@pytest.mark.parametrize("program", ["ratchet_trainer", "ratchet_rollout"])
def test_a_refused_password_is_not_repeated(
    program: str, tmp_path: Path, redis_server: RedisServer, s3: S3Server
):
    s3.credentials(tmp_path / "s3")
    url = redis_server.url.replace("//", f"//nobody:{quote(PASSWORD, safe='')}@")

    text = said(program, tmp_path, url, s3)

    assert "user or password of REDIS_URL" in text
    assert_unsaid(text, PASSWORD, url, s3.secret_key)


@pytest.mark.parametrize("url", [f"redis:/user:{PASSWORD}@host", f"http://user:{PASSWORD}@host"])
def test_a_malformed_url_is_not_repeated(url: str, tmp_path: Path, s3: S3Server):
    text = said("ratchet_rollout", tmp_path, url, s3)

    assert "is not a Redis URL" in text
    assert_unsaid(text, PASSWORD, url)


def test_what_storage_refuses_is_not_repeated(tmp_path: Path, redis_server: RedisServer, s3: S3Server):
    folder = s3.credentials(tmp_path / "s3")
    (folder / "AWS_SECRET_ACCESS_KEY").write_text(PASSWORD)
    (folder / "AWS_SESSION_TOKEN").write_text(TOKEN)

    text = said("ratchet_trainer", tmp_path, redis_server.url, s3)

    assert "checkpoint.s3.secretRef" in text
    assert '"level": "debug"' in text
    assert_unsaid(text, PASSWORD, TOKEN)


@dataclass
class Served:
    """A policy server, and all that it has answered, heads included."""

    process: subprocess.Popen[str]
    log: Path
    port: int
    answers: list[str] = field(default_factory=list[str])

    def ask(self, method: str, path: str, body: str = "", token: str | None = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        connection.request(method, path, body, {"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        self.answers.append(f"{answer.status} {answer.headers}{answer.read().decode()}")
        connection.close()
        return answer.status

    def order(self, source: str) -> int:
        return self.ask("PUT", "/v1/policy", json.dumps({"source": source}), ORDERS)

    def until(self, message: str) -> None:
        """The log has a line with this message."""
        end = time.monotonic() + SECONDS
        while f'"message": "{message}"' not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)

    def everything(self) -> str:
        """Ends it; its log and its answers."""
        self.process.terminate()
        assert self.process.wait(SECONDS) == 0, self.log.read_text()
        return "\n".join([self.log.read_text(), *self.answers])


@contextmanager
def served(folder: Path, s3: S3Server) -> Iterator[Served]:
    """Policy `s3://ratchet/<name of the folder>`, with the keys in the folder's `s3`."""
    (folder / "admin-token").write_text(ORDERS)
    log, port = folder / "log", free_port()
    flags = {
        "--host": "127.0.0.1",
        "--port": port,
        "--policy": f"s3://ratchet/{folder.name}",
        "--cache": folder / "cache",
        "--s3-endpoint": s3.endpoint,
        "--admin-token-file": folder / "admin-token",
        "--drain-delay-seconds": 0,
    }
    command = [sys.executable, "-c", TALKATIVE.format(program="ratchet_inference")]
    environment = {**os.environ, "RATCHET_S3_CREDENTIALS_DIR": str(folder / "s3")}
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *(f"{flag}={value}" for flag, value in flags.items())],
            env={**environment, "RATCHET_TERMINATION_LOG": str(folder / "last-words")},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    server = Served(process, log, port)
    try:
        server.until("serving")
        yield server
    finally:
        process.kill()
        process.wait()


def test_a_policy_server_repeats_no_secret_to_those_who_ask_or_order(tmp_path: Path, s3: S3Server):
    s3.credentials(tmp_path / "s3")
    for name, content in artifact().files.items():
        s3.client().put_object(Bucket="ratchet", Key=f"{tmp_path.name}/{name}", Body=content)

    with served(tmp_path, s3) as server:
        server.until("swapped")
        paths = ("/v1/stats", "/metrics", "/v1/route", "/healthz", "/readyz", "/nowhere")
        told = [server.ask("GET", path, token=ORDERS) for path in paths]
        asked = [server.ask("POST", "/v1/act", body) for body in ('{"observation": [0, 0, 0, 0]}', "{}")]
        refused = [server.ask("PUT", "/v1/policy", "{}", token) for token in (None, ORDERS[:-1], ORDERS)]
        # The last one is an error that no handler expects.
        elsewhere = ("s3://not-there/policy", "s3://ratchet/not/there", "file:///\0")
        orders = [server.order(f"s3://ratchet/{tmp_path.name}"), *map(server.order, elsewhere)]
        text = server.everything()

    assert told == [200, 200, 200, 200, 200, 404]
    assert asked == [200, 400]
    assert refused == [401, 401, 400]
    assert orders == [200, 503, 422, 500]
    for word in ('"level": "debug"', "Traceback", "no-token", "artifact-denied", "not/there"):
        assert word in text
    assert_unsaid(text, ORDERS, s3.access_key, s3.secret_key)


def test_what_storage_refuses_a_policy_server_is_not_repeated(tmp_path: Path, s3: S3Server):
    folder = s3.credentials(tmp_path / "s3")
    (folder / "AWS_SECRET_ACCESS_KEY").write_text(PASSWORD)
    (folder / "AWS_SESSION_TOKEN").write_text(TOKEN)

    with served(tmp_path, s3) as server:
        assert server.process.wait(SECONDS) == ExitCode.CONFIG
        text = server.log.read_text()

    words = (tmp_path / "last-words").read_text()
    assert "Correct the keys in the Secret of s3.secretRef" in words
    assert_unsaid(text + words, PASSWORD, TOKEN, ORDERS, s3.access_key)
