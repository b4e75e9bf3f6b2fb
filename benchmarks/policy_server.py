"""The policy server next to the same policy behind uvicorn, FastAPI and Ray Serve, and to bare HTTP.

Usage: python benchmarks/policy_server.py [--quick] [--seconds S] [--rounds N] [--rate R] [--only NAME …]

CPU per request is that of all processes of a server, while 64 connections ask without pause. Servers are
asked in turns; a ratio is the median over the rounds of what a server cost next to ours in the same round, so
that a machine which changes its speed spoils it less. Latency is measured open loop, from the time a request
was due; a server that cannot take the rate gets half of what it took without pause. `late` is how late the
client itself was to send: where it is not small, nor is what it measured. --quick takes a third of the time,
and no Ray Serve.
"""

import argparse
import http.client
import itertools
import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from policy_load import START_SECONDS, Cost, Server, act, free_port, open_loop, running, without_pause

from ratchet.policies import PolicySpec, SpaceSpec, parameter_shapes
from ratchet.policies.artifact import PolicyLineage, make, write_folder
from ratchet.policies.formats import WeightFormat
from ratchet.policies.spec import value_shapes

CONNECTIONS = 64
CONTESTANTS = Path(__file__).with_name("policy_contestants.py")
NAMES = ("ratchet", "floor", "uvicorn", "fastapi", "ray", "ray-defaults")
BATCHES = (1, 4, 16, 64, 256)
DIFFERENT = 64
WARM_SECONDS = 0.5
SMALL = PolicySpec(
    observation=SpaceSpec(kind="Box", shape=(4,), low=-4.8, high=4.8),
    action=SpaceSpec(kind="Discrete", n=2, dtype="int64"),
)
LARGE = PolicySpec(
    observation=SpaceSpec(kind="Box", shape=(64,), low=-1.0, high=1.0),
    action=SpaceSpec(kind="Discrete", n=16, dtype="int64"),
    hidden=(1024, 1024),
)
ARITHMETIC: tuple[tuple[str, WeightFormat], ...] = (
    ("numpy", "float32"),
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("torch", "int8"),
)


def policy(folder: Path, spec: PolicySpec, seed: int, weights: WeightFormat = "float32") -> Path:
    """A policy and its value network with weights drawn by seed."""
    rng = np.random.default_rng(seed)
    parameters = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in {**parameter_shapes(spec), **value_shapes(spec)}.items()
    }
    observations = np.zeros((0, *spec.observation.shape), np.float32)
    write_folder(make(spec, parameters, observations, PolicyLineage(), weights), folder)
    return folder


def questions(spec: PolicySpec, rows: int) -> list[bytes]:
    """Act requests of one observation, or of a batch."""
    rng = np.random.default_rng(rows)
    observations = rng.normal(size=(DIFFERENT if rows == 1 else 1, rows, *spec.observation.shape)).round(4)
    return [
        act({"observation": one[0]} if rows == 1 else {"observations": one}) for one in observations.tolist()
    ]


def serving(name: str, folder: Path, token: Path) -> AbstractContextManager[Server]:
    port = free_port()
    command = [sys.executable, str(CONTESTANTS), name, str(port), str(folder)]
    if name == "ratchet":
        program = Path(sys.executable).with_name("ratchet-inference")
        command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--policy", str(folder)]
        command += ["--admin-token-file", str(token), "--drain-delay-seconds", "0"]
    spec = SMALL if folder.name in ("a", "b") else LARGE
    # Ray gives up after 30 s, which on a busy machine is soon.
    patient = {"RAY_DEDUP_LOGS": "0", "RAY_raylet_start_wait_time_s": str(START_SECONDS)}
    return running(command, port, questions(spec, 1)[0], patient)


def in_turns(
    servers: dict[str, Server], requests: Sequence[bytes], connections: int, rounds: int, seconds: float
) -> dict[str, list[Cost]]:
    """What each server costs, by name and round."""
    for server in servers.values():
        without_pause(server, requests, connections, WARM_SECONDS)
    costs: dict[str, list[Cost]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, server in servers.items():
            costs[name].append(without_pause(server, requests, connections, seconds))
    return costs


def medians(costs: list[Cost], field: str) -> float:
    return statistics.median(getattr(cost, field) for cost in costs)


def ratio(costs: list[Cost], others: list[Cost]) -> float:
    return statistics.median(one.cpu / other.cpu for one, other in zip(costs, others, strict=True))


def quantiles(seconds: Sequence[float]) -> str:
    return " ".join(f"{1e3 * x:8.2f}" for x in np.quantile(seconds, [0.5, 0.99, 0.999]))


def compare(
    names: Sequence[str], folder: Path, token: Path, rounds: int, seconds: float, rate: float
) -> None:
    """Ours next to others, all of them there at once; latencies then one after the other."""
    requests = questions(SMALL, 1)
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(name, folder, token)) for name in names}
        costs = in_turns(servers, requests, CONNECTIONS, rounds, seconds)
        for name, server in servers.items():
            own = costs[name]
            taken = min(rate, medians(own, "rate") / 2)
            client = open_loop(server, requests, CONNECTIONS, taken, seconds)
            failed = sum(cost.failed for cost in own) + client.failed + client.lost
            print(
                f"{name:12} {1e6 * medians(own, 'cpu'):8.1f} {1e6 * medians(own, 'kernel'):7.1f} "
                f"{ratio(own, costs['ratchet']):7.2f} {medians(own, 'rate'):9,.0f} "
                f"{1e6 * medians(own, 'client'):7.1f} {server.memory():5.0f} | {taken:6,.0f} "
                f"{quantiles(client.latencies)} {1e3 * np.quantile(client.late, 0.99):6.2f} | {failed:6}",
                flush=True,
            )


def batches(home: Path, token: Path, rounds: int, seconds: float) -> None:
    """Ours by observations in a request, from one connection: so many the policy is asked at once."""
    with ExitStack() as stack:
        small = stack.enter_context(serving("ratchet", home / "a", token))
        large = {
            f"{library} {weights}": stack.enter_context(
                serving(library, policy(home / weights, LARGE, 0, weights), token)
            )
            for library, weights in ARITHMETIC
        }
        names = list(large)
        print(f"{'rows':>5} {'64x64':>9} | " + " ".join(f"{name:>18}" for name in names))
        for rows in BATCHES:
            alone = in_turns({"": small}, questions(SMALL, rows), 1, rounds, seconds)[""]
            costs = in_turns(large, questions(LARGE, rows), 1, rounds, seconds)
            first = costs[names[0]]
            columns = " ".join(
                f"{1e6 * medians(costs[name], 'cpu') / rows:10.1f} ({ratio(costs[name], first):5.2f})"
                for name in names
            )
            failed = sum(cost.failed for own in (alone, *costs.values()) for cost in own)
            print(
                f"{rows:5} {1e6 * medians(alone, 'cpu') / rows:9.2f} | {columns}"
                + (f"  {failed} failed" if failed else ""),
                flush=True,
            )
        print(
            f"{'MiB':>5} {small.memory():9.0f} | " + " ".join(f"{s.memory():18.0f}" for s in large.values())
        )


def swaps(folders: list[Path], token: Path, rate: float, seconds: float) -> None:
    """Latency while policies are swapped all the time, and what each swap says of itself."""
    said: list[dict[str, Any]] = []
    over = threading.Event()

    def swap(port: int) -> None:
        for folder in itertools.cycle(reversed(folders)):
            if over.wait(0.1):
                return
            connection = http.client.HTTPConnection("127.0.0.1", port)
            headers = {"authorization": f"Bearer {token.read_text()}"}
            connection.request("PUT", "/v1/policy", json.dumps({"source": str(folder)}), headers)
            said.append(json.loads(connection.getresponse().read()))
            connection.close()

    requests = questions(SMALL, 1)
    with serving("ratchet", folders[0], token) as server:
        open_loop(server, requests, CONNECTIONS, rate, WARM_SECONDS)
        before = server.memory()
        swapping = threading.Thread(target=swap, args=(server.port,))
        swapping.start()
        client = open_loop(server, requests, CONNECTIONS, rate, seconds)
        over.set()
        swapping.join()
        worst = 1e6 * max(one["swapSeconds"] for one in said)
        load = 1e3 * statistics.median(one["loadSeconds"] for one in said)
        print(
            f"{len(said)} swaps at {rate:,.0f} requests/s: {client.failed + client.lost} failed; the swap "
            f"itself {worst:.0f} us at most, loading, checking and warming up before it {load:.0f} ms "
            "(median)\n"
            f"latency meanwhile, p50 p99 p99.9: {quantiles(client.latencies)} ms; "
            f"memory {before:.0f} -> {server.memory():.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="shorter, and without Ray Serve")
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--rounds", type=int, help="of each comparison")
    parser.add_argument("--rate", type=float, default=5000.0, help="requests per second of the open loop")
    parser.add_argument("--only", nargs="*", choices=NAMES[1:], help="next to ours; default all")
    arguments = parser.parse_args()
    quick = arguments.quick
    seconds = arguments.seconds or (1.0 if quick else 2.0)
    rounds = arguments.rounds or (3 if quick else 5)
    wanted = arguments.only if arguments.only is not None else NAMES[1 : -2 if quick else None]
    with tempfile.TemporaryDirectory(prefix="ratchet-benchmark-") as folder:
        home = Path(folder)
        token = home / "token"
        token.write_text("benchmark")
        folders = [policy(home / name, SMALL, seed) for seed, name in enumerate("ab")]
        print(
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {CONNECTIONS} connections, medians of {rounds} rounds\n"
        )
        print(
            f"{'server':12} {'us/req.':>8} {'kernel':>7} {'ratio':>7} {'req./s':>9} {'client':>7} "
            f"{'MiB':>5} | {'rate':>6} {'p50 ms':>8} {'p99':>8} {'p99.9':>8} {'late':>6} | failed"
        )
        # What Ray's processes do by themselves would disturb the others.
        calm = [name for name in wanted if not name.startswith("ray")]
        if calm or not wanted:
            compare(["ratchet", *calm], folders[0], token, rounds, seconds, arguments.rate)
        for name in wanted:
            if name not in calm:
                compare(["ratchet", name], folders[0], token, min(rounds, 3), seconds, arguments.rate)
        print(
            "\nCPU us/observation by rows in a request, one connection; 64x64 as it is served, and 1024x1024"
        )
        print("by what multiplies it, with the ratio to numpy in float32")
        batches(home, token, max(2, rounds // 2), seconds / 2)
        print()
        swaps(folders, token, arguments.rate, 2.5 * seconds)


if __name__ == "__main__":
    main()
