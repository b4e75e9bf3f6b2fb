"""Trainer and worker as processes at their most talkative: no line that they leave holds a secret."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from disguises import disguises
from redis import Redis
from redisserver import RedisServer, free_port
from s3server import S3Server

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
