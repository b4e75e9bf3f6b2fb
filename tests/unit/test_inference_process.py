"""The program itself: started by its command, swapped under load, asked to end, started without S3."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policyserver import SPEC, answers, post
from ratchet_inference.decisions.rewards import Rewards, RewardSettings
from ratchet_inference.main import tick
from ratchet_inference.settings import Settings, WrongSettings
from s3server import S3Server

from ratchet.decisions import Decision, Reward
from ratchet.policies import parameter_shapes
from ratchet.policies.artifact import PolicyLineage, make, write_folder

ACT = json.dumps({"observation": [0.1, -0.2, 0.3, 0.4]})


def stored(path: Path, seed: int) -> str:
    """A policy in a folder; its digest."""
    rng = np.random.default_rng(seed)
    parameters = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in parameter_shapes(SPEC).items()
    }
    artifact = make(SPEC, parameters, np.zeros((0, 4), np.float32), PolicyLineage())
    write_folder(artifact, path)
    return artifact.digest


@dataclass
class Program:
    """A running server process."""

    process: subprocess.Popen[str]
    lines: list[dict[str, Any]]

    def port(self) -> int:
        return next(line["port"] for line in self.until("serving") if line["message"] == "serving")

    def until(self, message: str) -> list[dict[str, Any]]:
        """The log up to now, once it holds that message."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if any(line["message"] == message for line in self.lines):
                return list(self.lines)
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"no {message!r} in {self.lines}")

    def request(self, method: str, path: str, body: str = "", token: str = "") -> tuple[int, bytes]:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", self.port(), timeout=20)
        connection.request(method, path, body, {"authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found


@contextmanager
def program(*arguments: str, **environment: str) -> Iterator[Program]:
    command = Path(sys.executable).with_name("ratchet-inference")
    process = subprocess.Popen(
        [command, "--host", "127.0.0.1", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    running = Program(process, [])

    def read() -> None:
        assert process.stdout
        for line in process.stdout:
            running.lines.append(json.loads(line))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield running
    finally:
        process.kill()
        process.wait()
        reader.join(5)


@dataclass
class Load:
    """A client that counts every answer, until it is told to go elsewhere."""

    port: int
    statuses: dict[int, int] = field(default_factory=dict[int, int])
    digests: set[str] = field(default_factory=set[str])
    lost: int = 0
    told_to_go: bool = False

    def run(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            while not self.told_to_go:
                try:
                    connection.sendall(post(ACT))
                    head, body = self._answer(connection)
                except (OSError, ValueError):
                    self.lost += 1
                    return
                status = int(head.split()[1])
                self.statuses[status] = self.statuses.get(status, 0) + 1
                self.digests.add(json.loads(body).get("digest", ""))
                self.told_to_go = b"connection: close" in head

    def _answer(self, connection: socket.socket) -> tuple[bytes, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = connection.recv(65_536)
            if not chunk:
                raise ValueError("closed without an answer")
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += connection.recv(65_536)
        return head, body


def test_swaps_under_load_and_an_end_under_load_lose_no_request(tmp_path: Path):
    digests = [stored(tmp_path / str(i), i) for i in range(2)]
    token = tmp_path / "token"
    token.write_text("boss\n")
    arguments = [
        "--policy",
        str(tmp_path / "0"),
        "--admin-token-file",
        str(token),
        "--drain-delay-seconds",
        "0.5",
    ]
    with program(*arguments) as server:
        server.until("swapped")
        loads = [Load(server.port()) for _ in range(4)]
        threads = [threading.Thread(target=load.run) for load in loads]
        for thread in threads:
            thread.start()
        for i in range(20):
            body = json.dumps({"source": str(tmp_path / str(1 - i % 2))})
            status, answer = server.request("PUT", "/v1/policy", body, "boss")
            assert (status, json.loads(answer)["digest"]) == (200, digests[1 - i % 2])
        wrong = json.dumps({"source": str(tmp_path / "1"), "digest": digests[0]})
        assert server.request("PUT", "/v1/policy", wrong, "boss")[0] == 422
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        for thread in threads:
            thread.join(20)
    assert [load.lost for load in loads] == [0] * 4
    assert all(load.told_to_go for load in loads)
    assert {status for load in loads for status in load.statuses} == {200}
    assert {digest for load in loads for digest in load.digests} == set(digests)


def test_a_wrong_artifact_at_the_start_ends_it_with_a_reason(tmp_path: Path):
    digest = stored(tmp_path / "policy", 0)
    weights = next(path for path in (tmp_path / "policy").iterdir() if path.suffix == ".safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    words = tmp_path / "words"
    with program("--policy", str(tmp_path / "policy"), RATCHET_TERMINATION_LOG=str(words)) as server:
        assert server.process.wait(20) == 10
    assert words.read_text()
    assert digest


def test_it_waits_for_its_bucket_and_starts_from_its_cache_when_the_bucket_is_gone(
    tmp_path: Path, s3: S3Server
):
    digest = stored(tmp_path / "policy", 0)
    client = s3.client()
    for file in (tmp_path / "policy").iterdir():
        client.upload_file(str(file), "ratchet", f"served/{file.name}")
    arguments = ["--policy", "s3://ratchet/served", "--cache", str(tmp_path / "cache")]
    credentials = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    nowhere = ["--s3-endpoint", "http://127.0.0.1:9"]
    with program(*arguments, *nowhere, **credentials) as server:
        server.until("no policy yet")
        assert server.request("GET", "/healthz")[0] == 200
        assert server.request("GET", "/readyz")[0] == 503
        assert server.request("POST", "/v1/act", ACT)[0] == 503
    with program(*arguments, "--s3-endpoint", s3.endpoint, **credentials) as server:
        server.until("swapped")
        assert json.loads(server.request("POST", "/v1/act", ACT)[1])["digest"] == digest
    with program(*arguments, *nowhere, **credentials) as server:
        server.until("swapped")
        assert json.loads(server.request("POST", "/v1/act", ACT)[1])["digest"] == digest


def test_it_starts_with_the_route_of_a_file(tmp_path: Path):
    stored(tmp_path / "policy", 0)
    route = tmp_path / "route.json"
    route.write_text('{"generation": 7, "canary": "http://127.0.0.1:9", "weight": 0.25, "salt": "s"}')
    with program("--policy", str(tmp_path / "policy"), "--route-file", str(route)) as server:
        assert json.loads(server.request("GET", "/v1/route")[1])["generation"] == 7
    route.write_text('{"weight": 2}')
    with program("--policy", str(tmp_path / "policy"), "--route-file", str(route)) as server:
        assert server.process.wait(20) == 10


def test_waits_for_rewards_end_on_a_server_that_nobody_asks():
    now = 0.0
    written: list[Reward] = []

    async def a_look_without_a_request() -> None:
        done = asyncio.Event()
        rewards = Rewards(
            lambda reward: (written.append(reward), done.set()),
            RewardSettings(window=1.0, default=-1.0),
            lambda: now + 2.0,
        )
        nothing = np.zeros(4, np.float32)
        rewards.decided(Decision("mine", now, "digest", "stable", None, None, nothing, None, 0, -0.7, None))
        task = asyncio.create_task(tick(rewards, 0.001))
        async with asyncio.timeout(30):
            await done.wait()
        task.cancel()

    asyncio.run(a_look_without_a_request())

    assert [reward.reward for reward in written] == [-1.0]


def test_ten_thousand_idle_connections_leave_the_others_alone(tmp_path: Path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = min(10_000, hard - 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number + 200), hard))
    stored(tmp_path / "policy", 0)
    try:
        with program("--policy", str(tmp_path / "policy")) as server:
            server.until("swapped")
            port = server.port()
            idle = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(number)]
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                for _ in range(100):
                    connection.sendall(post(ACT))
                    assert answers(connection, 1)[0][0] == 200
            assert json.loads(server.request("GET", "/v1/stats")[1])["connections"] > number
            for connection in idle:
                connection.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_settings_come_from_flags_then_variables_then_defaults(tmp_path: Path):
    (tmp_path / "token").write_text(" sesame\n")
    environment = {
        "RATCHET_MAX_BATCH": "32",
        "RATCHET_PORT": "9000",
        "RATCHET_DETERMINISTIC": "true",
        "RATCHET_TOKEN_FILE": str(tmp_path / "token"),
    }
    settings = Settings.read(["--port", "9001", "--no-rewards"], environment)
    assert (settings.port, settings.max_batch, settings.deterministic) == (9001, 32, True)
    assert (settings.rewards, settings.token, settings.idle_seconds) == (False, "sesame", 120.0)
    assert "sesame" not in repr(settings)
    assert Settings.read([], {"RATCHET_PORT": "tcp://10.96.0.7:8080"}).port == Settings().port


@pytest.mark.parametrize(
    "environment",
    [
        {"RATCHET_PORT": "http"},
        {"RATCHET_DETERMINISTIC": "perhaps"},
        {"RATCHET_TOKEN_FILE": "/nowhere/token"},
        {"RATCHET_TLS_CERT": "cert.pem"},
        {"RATCHET_TLS_CLIENT_CA": "ca.pem"},
        {"RATCHET_MAX_BATCH": "0"},
        {"RATCHET_MAX_SESSIONS": "0"},
        {"RATCHET_PORT": "70000"},
        {"RATCHET_CANARY_MS": "0"},
        {"RATCHET_MAX_DELAY_MS": "-1"},
        {"RATCHET_IDLE_SECONDS": "nan"},
        {"RATCHET_DRAIN_SECONDS": "inf"},
        {"RATCHET_DEFAULT_REWARD": "nan"},
        {"RATCHET_DEFAULT_REWARD": "1e101"},
        {"RATCHET_DEFAULT_REWARD": "much"},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused_with_what_to_write(environment: dict[str, str]):
    with pytest.raises(WrongSettings, match=r"write|must be|needs|go together|can't be read"):
        Settings.read([], environment)
