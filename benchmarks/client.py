"""What one action costs its client, next to what general HTTP clients cost for the same bytes.

Usage: python benchmarks/client.py [--requests N]

The server is another process that answers without thinking. Each contestant asks for the same action over
one kept connection, in turn and in several rounds; medians over rounds. httpx is measured where installed.
"""

import argparse
import asyncio
import http.client
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from ratchet.client import AsyncClient, Client

OBSERVATION = [0.01, -0.02, 0.03, 0.04]
ROUNDS = 5
SERVER = """
import asyncio
class Answers(asyncio.Protocol):
    received = b""
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.received += data
        if not self.received.endswith(b"}"):
            return
        start = self.received.index(b'"', self.received.index(b'"id":') + 5) + 1
        name = self.received[start : self.received.index(b'"', start)]
        self.received = b""
        body = b'{"id":"%b","action":1,"logProbability":-0.69,"value":0.25,"digest":"%b","arm":"stable",' \\
            b'"fallback":null,"episode":"e","t":3}' % (name, b"ab" * 32)
        self.transport.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n%b" % (len(body), body))
async def main():
    server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
QUESTION = {"observation": OBSERVATION, "id": "x", "episode": "e"}


def contestants(port: int) -> dict[str, Callable[[int], None]]:
    """Each asks that often."""
    url = f"http://127.0.0.1:{port}"
    client = Client(url, strict=True, timeout=20)
    plain = http.client.HTTPConnection("127.0.0.1", port)
    runner = asyncio.Runner()
    awaited = AsyncClient(url, strict=True, timeout=20)

    def ours(times: int) -> None:
        for _ in range(times):
            client.act(OBSERVATION, episode="e")

    def standard_library(times: int) -> None:
        for _ in range(times):
            plain.request("POST", "/v1/act", json.dumps(QUESTION), {"Content-Type": "application/json"})
            json.loads(plain.getresponse().read())

    async def asking(times: int) -> None:
        for _ in range(times):
            await awaited.act(OBSERVATION, episode="e")

    found: dict[str, Callable[[int], None]] = {
        "Client": ours,
        "AsyncClient": lambda times: runner.run(asking(times)),
        "http.client": standard_library,
    }
    if importlib.util.find_spec("httpx"):
        import httpx

        blocking, waiting = httpx.Client(), httpx.AsyncClient()

        def with_httpx(times: int) -> None:
            for _ in range(times):
                blocking.post(f"{url}/v1/act", json=QUESTION).json()

        async def asking_httpx(times: int) -> None:
            for _ in range(times):
                (await waiting.post(f"{url}/v1/act", json=QUESTION)).json()

        found["httpx.Client"] = with_httpx
        found["httpx.AsyncClient"] = lambda times: runner.run(asking_httpx(times))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=1000, help="in each round (1000)")
    requests = parser.parse_args().requests
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        port: Any = server.stdout and server.stdout.readline()
        asks = contestants(int(port))
        cpu: dict[str, list[float]] = {name: [] for name in asks}
        wall: dict[str, list[float]] = {name: [] for name in asks}
        for ask in asks.values():
            ask(100)
        for _ in range(ROUNDS):
            for name, ask in asks.items():
                began, spent = time.perf_counter(), time.process_time()
                ask(requests)
                cpu[name].append((time.process_time() - spent) / requests * 1e6)
                wall[name].append((time.perf_counter() - began) / requests * 1e6)
    finally:
        server.terminate()
        server.wait()
    ours = statistics.median(cpu["Client"])
    print(f"{'':18} {'CPU µs':>8} {'wall µs':>8} {'CPU ratio':>10}")
    for name in asks:
        mine = statistics.median(cpu[name])
        print(f"{name:18} {mine:8.0f} {statistics.median(wall[name]):8.0f} {mine / ours:10.2f}")


if __name__ == "__main__":
    main()
