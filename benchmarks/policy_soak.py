"""A million requests and a thousand swaps against one policy server: memory, failures, counts.

Usage: python benchmarks/policy_soak.py [--requests N] [--swaps N] [--rate R] [--image NAME]

The server is a process, or with --image a container (`ratchet-inference:dev`). It is asked at a fixed rate,
open loop: a third of the requests with a mask, a third within episodes, a third with a seed. Meanwhile eight
policies take turns, swap after swap. Each answer must be 200, of one of these policies, no fallback, finite,
and allowed by its mask; at the end the server's own counters must be the client's, number by number. Memory
is judged from when the server's bounded tables are full. The exit status is 1 if anything is wrong.
"""

import argparse
import asyncio
import hashlib
import http.client
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvloop
from policy_load import Client, Server, act, free_port, running
from policy_server import SMALL, policy

from ratchet.policies import SpaceSpec

POLICIES = 8
CONNECTIONS = 64
ACTIONS = 6
SPEC = SMALL.model_copy(update={"action": SpaceSpec(kind="Discrete", n=ACTIONS, dtype="int64")})
STEPS = 5
# Of the server; so that its tables are full before memory is judged, and leave something out all the time.
EPISODES, SESSIONS, REWARD_SECONDS = 4096, 1024, 5
# A stall of the machine is no failure of the server.
DELAY_MS = 60_000
# Of the answers; until then dictionaries that come and go find their sizes.
WARM = 0.4
SAMPLE_SECONDS = 1.0


class Counting(Client):
    """Holds each answer against its question, and counts as the server should."""

    def __init__(self, port: int, digests: set[str]) -> None:
        rng = np.random.default_rng(0)
        self._observations = rng.normal(size=(997, 4)).round(3).tolist()
        self._masks = [
            [bool(number >> action & 1) for action in range(ACTIONS)] for number in range(1, 2**ACTIONS)
        ]
        self._digests = digests
        self.requests: Counter[str] = Counter()
        self.actions = {digest: [0] * ACTIONS for digest in digests}
        super().__init__(port, [])

    def next_request(self) -> tuple[int, bytes]:
        number = self._sent
        self._sent += 1
        body: dict[str, Any] = {"observation": self._observations[number % len(self._observations)]}
        if number % 3 == 0:
            body["mask"] = self._masks[number % len(self._masks)]
        elif number % 3 == 1:
            turn, place = divmod(number // 3, CONNECTIONS)
            body["episode"] = f"e{(turn // STEPS * CONNECTIONS + place) % EPISODES}"
        else:
            body["seed"] = number
        return number, act(body)

    def check(self, number: int, body: bytes) -> bool:
        answer: Any = orjson.loads(body)
        digest: Any = answer.get("digest")
        action: Any = answer.get("action")
        fine = bool(
            digest in self._digests
            and answer["fallback"] is None
            and math.isfinite(answer["logProbability"])
            and action in range(ACTIONS)
            and (number % 3 != 0 or self._masks[number % len(self._masks)][int(action)])
        )
        if fine:
            self.requests[digest] += 1
            self.actions[digest][action] += 1
        return fine


def ask(port: int, method: str, path: str, body: Any = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, json.dumps(body), {"authorization": "Bearer soak"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{method} {path} {body}: {answer.status} {text.decode()}")
        return json.loads(text)
    finally:
        connection.close()


@contextmanager
def serving(home: Path, image: str | None) -> Generator[Server]:
    """The server, as a process or in a container that sees `home` as /given."""
    port = free_port()
    settings = ["--admin-token-file", "--policy", "--max-sessions", str(SESSIONS)]
    settings += ["--max-delay-ms", str(DELAY_MS), "--drain-delay-seconds", "0"]
    # The client counts a connection that ends as lost.
    settings += ["--reward-seconds", str(REWARD_SECONDS), "--connection-seconds", "86400"]
    first = act({"observation": [0, 0, 0, 0]})
    if image is None:
        program = str(Path(sys.executable).with_name("ratchet-inference"))
        settings[1:2] = [str(home / "token"), "--policy", str(home / "0")]
        command = [program, "--host", "127.0.0.1", "--port", str(port), *settings]
        with running(command, port, first) as server:
            yield server
        return
    settings[1:2] = ["/given/token", "--policy", "/given/0"]
    options = [
        f"--publish=127.0.0.1:{port}:8080",
        "--read-only",
        "--tmpfs=/tmp",
        f"--volume={home}:/given:ro",
    ]
    id_ = _docker("run", "--detach", *options, image, *settings)
    try:
        server = Server(port, int(_docker("inspect", "--format", "{{.State.Pid}}", id_)))
        deadline = time.monotonic() + 60
        while not server.answers(first):
            if time.monotonic() > deadline:
                raise SystemExit(f"{image} does not serve: {_docker('logs', id_)}")
            time.sleep(0.1)
        yield server
    finally:
        _docker("rm", "--force", id_)


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


async def soak(
    server: Server, client: Counting, folders: list[str], arguments: argparse.Namespace
) -> tuple[list[tuple[int, float]], list[float]]:
    """Memory in MiB by the number of answers, and the seconds that each swap itself took."""
    await client.connect(CONNECTIONS)
    asking = asyncio.create_task(client.open_loop(arguments.rate, arguments.requests / arguments.rate))
    memory: list[tuple[int, float]] = []
    swapped: list[float] = []

    async def look() -> None:
        while not asking.done():
            memory.append((len(client.latencies), server.memory()))
            await asyncio.wait({asking}, timeout=SAMPLE_SECONDS)

    async def swap() -> None:
        for number, folder in zip(range(arguments.swaps), itertools.cycle(folders), strict=False):
            # Spread over the requests, the last before the last of them.
            while len(client.latencies) < number / arguments.swaps * arguments.requests * 0.99:
                if asking.done():
                    return
                await asyncio.sleep(0.005)
            said = await asyncio.to_thread(ask, server.port, "PUT", "/v1/policy", {"source": folder})
            swapped.append(said["swapSeconds"])

    await asyncio.gather(look(), swap(), asking)
    return memory, swapped


def differences(client: Counting, before: Any, after: Any, swaps: int) -> list[str]:
    """Where the server's counters are not the client's."""
    own = {digest: (client.requests[digest], client.actions[digest]) for digest in client.actions}
    first = {arm["digest"]: arm for arm in before["arms"]}
    wrong: list[str] = []
    for arm in after["arms"]:
        digest, was = arm["digest"], first.get(arm["digest"])
        counts = np.array(arm["actions"]["counts"]) - (was["actions"]["counts"] if was else 0)
        found = (arm["requests"] - (was["requests"] if was else 0), counts.tolist())
        if arm["arm"] != "stable" or found != own.pop(digest):
            wrong.append(f"{arm['arm']} {digest[:12]}: {found}")
        if arm["errors"] or arm["fallbacks"] or arm["maskViolations"] or arm["nanAnswers"]:
            wrong.append(f"{arm['arm']} {digest[:12]}: {arm['errors']} {arm['fallbacks']}")
    wrong += [f"{digest[:12]} is not counted" for digest, (requests, _) in own.items() if requests]
    # It was asked before it had a policy.
    refused = sum(after["refusals"].values()) - sum(before["refusals"].values())
    others = (after["shed"], refused, after["swaps"] - before["swaps"])
    if others != (0, 0, swaps):
        wrong.append("shed, refused, swaps: {}, {}, {}".format(*others))
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--swaps", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=8_000.0, help="requests per second")
    parser.add_argument("--image", help="of a container; default is a process of this environment")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ratchet-soak-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        (home / "token").write_text("soak")
        names = [str(number) for number in range(POLICIES)]
        digests = {digest_of(policy(home / name, SPEC, seed)) for seed, name in enumerate(names)}
        within = Path("/given") if arguments.image else home
        with serving(home, arguments.image) as server:
            before, cpu, begun = ask(server.port, "GET", "/v1/stats"), server.cpu(), time.monotonic()
            client = Counting(server.port, digests)
            turns = [str(within / name) for name in [*names[1:], names[0]]]
            memory, swapped = uvloop.run(soak(server, client, turns, arguments))
            spent, seconds = server.cpu() - cpu, time.monotonic() - begun
            wrong = differences(client, before, ask(server.port, "GET", "/v1/stats"), len(swapped))
    report(client, memory, swapped, spent[0], seconds, wrong)
    if client.failed or client.lost or wrong or len(swapped) < arguments.swaps:
        sys.exit(1)


def digest_of(folder: Path) -> str:
    """Of the policy in a folder."""
    return hashlib.sha256((folder / "policy.json").read_bytes()).hexdigest()


def report(
    client: Counting,
    memory: list[tuple[int, float]],
    swapped: list[float],
    cpu: float,
    seconds: float,
    wrong: list[str],
) -> None:
    number = len(client.latencies)
    warm = [(answers, mib) for answers, mib in memory if answers >= WARM * number]
    slope = statistics.linear_regression(*zip(*warm, strict=True)).slope if len(warm) > 1 else math.nan
    p50, p99, p999 = (1e3 * x for x in np.quantile(client.latencies, [0.5, 0.99, 0.999]))
    print(f"{number:,} answers in {seconds:.0f} s: {client.failed} wrong, {client.lost} lost")
    print(f"{len(swapped):,} swaps, each {1e6 * statistics.median(swapped):.0f} us (median), ", end="")
    print(f"{1e6 * max(swapped):.0f} us at most")
    print(
        f"CPU {1e6 * cpu / number:.1f} us/request, swaps included; latency p50 {p50:.2f} p99 {p99:.2f} ",
        end="",
    )
    print(f"p99.9 {p999:.2f} ms; client late by {1e3 * np.quantile(client.late, 0.99):.2f} ms (p99)")
    last = memory[-1][1]
    tenths = [next((mib for at, mib in memory if at >= number * i / 10), last) for i in range(11)]
    print(f"memory in MiB, start to end: {' '.join(f'{mib:.1f}' for mib in tenths)}; ", end="")
    print(f"from {WARM:.0%} of the answers on {1e6 * slope:+.2f} MiB per million")
    print("counts: the server's are the client's" if not wrong else "counts differ:\n" + "\n".join(wrong))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
