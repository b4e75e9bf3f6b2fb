"""The policy server as it is shipped: its image, without a right to spare, swapped and ended under load."""

import asyncio
import http.client
import json
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from cluster import eventually
from policyserver import SPEC, post

from ratchet.policies import PolicySpec, SpaceSpec, parameter_shapes
from ratchet.policies.artifact import PolicyLineage, make, write_folder
from ratchet.policies.formats import WeightFormat

IMAGE, TORCH_IMAGE = "ratchet-inference:dev", "ratchet-inference-torch:dev"
LARGE = PolicySpec(
    observation=SpaceSpec(kind="Box", shape=(256,), low=-1.0, high=1.0),
    action=SpaceSpec(kind="Discrete", n=16, dtype="int64"),
    hidden=(1024, 1024),
)
# Instructions without which numpy's float32 may be the faster.
INSTRUCTIONS: dict[WeightFormat, set[str]] = {
    "bfloat16": {"avx512_bf16", "amx_bf16"},
    "int8": {"avx512_vnni", "amx_int8"},
}
REQUESTS_PER_SECOND, CONNECTIONS = 300, 16
SWAPS, ANSWERS_PER_SWAP = 20, 150
PATIENCE_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Container:
    """A policy server in a container, on a port of this machine's loopback."""

    id: str
    port: int

    def request(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, json.dumps(body), {"authorization": "Bearer boss"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ready(self) -> bool:
        try:
            return self.request("GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"docker {arguments[0]}: {done.stderr} (`make install` builds the images)"
    return done.stdout.strip()


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """What the container may read; what pytest makes is its own user's alone."""
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "token").write_text("boss")
    return folder


def written(folder: Path, spec: PolicySpec, seed: int = 0, weights: WeightFormat = "float32") -> str:
    """Digest of a policy in a folder."""
    rng = np.random.default_rng(seed)
    parameters = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in parameter_shapes(spec).items()
    }
    observations = np.zeros((0, *spec.observation.shape), np.float32)
    artifact = make(spec, parameters, observations, PolicyLineage(), weights)
    write_folder(artifact, folder)
    return artifact.digest


@pytest.fixture
def digests(given: Path) -> list[str]:
    """Of two policies, in the folders `0` and `1`."""
    return [written(given / str(seed), SPEC, seed) for seed in range(2)]


@pytest.fixture
def container(given: Path, digests: list[str]) -> Iterator[Container]:
    with served(given, "--policy", "/given/0", "--digest", digests[0]) as running:
        yield running


@contextmanager
def served(given: Path, *arguments: str, image: str = IMAGE) -> Generator[Container]:
    """A server in a container until the end of the block."""
    id_ = docker(
        "run", "--detach", "--publish=127.0.0.1::8080", "--read-only", "--tmpfs=/tmp", "--user=10001:10001",
        "--cap-drop=ALL", "--security-opt=no-new-privileges", f"--volume={given}:/given:ro", image,
        *arguments, "--admin-token-file", "/given/token", "--drain-delay-seconds", "2",
        # On a machine that is busy with other tests, 100 ms late says nothing of the server.
        "--max-delay-ms", "10000",
    )  # fmt: skip
    try:
        running = Container(id_, int(docker("port", id_, "8080/tcp").rpartition(":")[2]))
        eventually("it serves", running.ready, deadline=60)
        yield running
    finally:
        docker("rm", "--force", id_)


@dataclass
class Load:
    """Requests on a schedule that no answer changes, over connections that end when they are told to.

    Attributes:
        digests: of every good answer, in their order.
        wrong: what else came of a request.
        news: another of either is there.

    """

    port: int
    digests: list[str] = field(default_factory=list[str])
    wrong: list[str] = field(default_factory=list[str])
    news: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0

    async def run(self) -> None:
        """Until the server has told every connection to close."""
        due: asyncio.Queue[int] = asyncio.Queue()
        schedule = asyncio.create_task(self._schedule(due))
        try:
            await asyncio.gather(*(self._connection(due) for _ in range(CONNECTIONS)))
        finally:
            schedule.cancel()

    async def reaches(self, answers: int) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.digests) < answers and not self.wrong:
                self.news.clear()
                await self.news.wait()
        assert self.wrong == []

    async def _schedule(self, due: asyncio.Queue[int]) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        number = 0
        while True:
            await asyncio.sleep(begun + number / REQUESTS_PER_SECOND - loop.time())
            due.put_nowait(number)
            number += 1

    async def _connection(self, due: asyncio.Queue[int]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        told_to_close = False
        while not told_to_close:
            number = await due.get()
            mask = [bool(number % 7 + 1 >> action & 1) for action in range(3)]
            body = {"observation": [number % 5 / 5, -0.2, 0.3, 0.4], "mask": mask, "id": str(number)}
            self.sent += 1
            try:
                writer.write(post(json.dumps(body)))
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                answer = json.loads(await reader.readexactly(length))
            except (OSError, asyncio.IncompleteReadError) as error:
                self.wrong.append(f"request {number}: {error!r}")
                self.news.set()
                return
            good = head.split()[1] == b"200" and answer["id"] == str(number) and answer["fallback"] is None
            if good and mask[answer["action"]]:
                self.digests.append(answer["digest"])
            else:
                self.wrong.append(f"request {number} under {mask}: {answer}")
            self.news.set()
            told_to_close = b"connection: close" in head
        writer.close()


def test_swaps_and_an_end_under_load_fail_no_request(container: Container, digests: list[str]) -> None:
    load = Load(container.port)

    async def disturb() -> None:
        running = asyncio.create_task(load.run())
        for swap in range(1, SWAPS + 1):
            await load.reaches(swap * ANSWERS_PER_SWAP)
            order = {"source": f"/given/{swap % 2}", "digest": digests[swap % 2]}
            status, answer = await asyncio.to_thread(container.request, "PUT", "/v1/policy", order)
            assert (status, json.loads(answer)["digest"]) == (200, digests[swap % 2])

        wrong = {"source": "/given/1", "digest": digests[0]}
        status, _ = await asyncio.to_thread(container.request, "PUT", "/v1/policy", wrong)
        assert status == 422
        # What was on its way may be of the policy before the last swap.
        since = len(load.digests) + CONNECTIONS
        await load.reaches(since + ANSWERS_PER_SWAP)
        assert set(load.digests[since:]) == {digests[SWAPS % 2]}

        await asyncio.to_thread(docker, "kill", "--signal=TERM", container.id)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await running

    asyncio.run(disturb())

    assert docker("wait", container.id) == "0"
    assert load.wrong == []
    assert len(load.digests) == load.sent
    assert set(load.digests) == set(digests)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_large_policies_are_computed_by_torch_where_the_image_has_it(
    given: Path, weights: WeightFormat
) -> None:
    if INSTRUCTIONS[weights].isdisjoint(Path("/proc/cpuinfo").read_text().split()):
        pytest.skip(f"the processor has no instructions for {weights}")
    written(given / "large", LARGE, weights=weights)
    written(given / "small", SPEC)

    with served(given, "--policy", "/given/large", image=TORCH_IMAGE) as large:
        status, answer = large.request("POST", "/v1/act", {"observations": np.eye(8, 256).tolist()})
        assert (status, arithmetic(large), mapped(large, "libtorch")) == (200, f"torch {weights}", True)
        assert json.loads(answer)["fallbacks"] == [None] * 8
    with served(given, "--policy", "/given/small", image=TORCH_IMAGE) as small:
        # torch takes 190 MiB, which a policy that gains nothing by it must not pay for.
        assert (arithmetic(small), mapped(small, "libtorch")) == ("numpy float32", False)
    with served(given, "--policy", "/given/large") as plain:
        assert arithmetic(plain) == "numpy float32"


def arithmetic(container: Container) -> str:
    """What the server says that it computes its policy with."""
    lines = map(json.loads, docker("logs", container.id).splitlines())
    return next(line["arithmetic"] for line in lines if line["message"] == "loaded")


def mapped(container: Container, library: str) -> bool:
    """Whether the server's process has loaded a library."""
    return library in docker("exec", container.id, "cat", "/proc/1/maps")
