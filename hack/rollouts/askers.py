"""Asks a policy server at a steady rate, each question once and on a connection of its own.

    python askers.py --url http://cartpole:8080 --rate 50

Open loop: a question leaves when it is due, whatever became of those before it. Nothing is asked twice, and
no connection is used again: a Service shares out connections, and a client that kept one would be of one arm.
Each second one line of JSON says what has come so far. SIGTERM ends it once what was asked is answered.
"""

import argparse
import asyncio
import json
import signal
import time
from collections import Counter
from urllib.parse import urlsplit

PATIENCE_SECONDS = 2.0


async def ask(host: str, port: int, episode: str) -> str:
    """What became of one question: `valid`, a status, or the name of an error."""
    body = json.dumps({"observation": [0.01, -0.02, 0.03, 0.04], "episode": episode}).encode()
    head = (
        f"POST /v1/act HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(head.encode() + body)
                answer = await reader.read()
            finally:
                writer.close()
        status, _, content = answer.partition(b"\r\n\r\n")
        code = status.split(b" ", 2)[1].decode()
        return "valid" if code == "200" and json.loads(content)["action"] in (0, 1) else code
    except (OSError, ValueError, LookupError) as error:
        return type(error).__name__


async def run(url: str, rate: float) -> None:
    """Asks until SIGTERM."""
    parts = urlsplit(url)
    loop, ending, met = asyncio.get_running_loop(), asyncio.Event(), Counter[str]()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    asked: set[asyncio.Task[str]] = set()
    requests, begin, said = 0, loop.time(), 0.0

    def answered(task: asyncio.Task[str]) -> None:
        asked.discard(task)
        met[task.result()] += 1

    def say(*, ended: bool) -> None:
        errors = {what: number for what, number in met.items() if what != "valid"}
        line = {"requests": requests, "valid": met["valid"], "failed": sum(errors.values()), "errors": errors}
        print(json.dumps({"time": time.time(), "ended": ended, **line}), flush=True)

    while not ending.is_set():
        if loop.time() - said >= 1:
            said = loop.time()
            say(ended=False)
        task = loop.create_task(ask(parts.hostname or "", parts.port or 80, f"{begin}-{requests}"))
        task.add_done_callback(answered)
        asked.add(task)
        requests += 1
        await asyncio.sleep(begin + requests / rate - loop.time())
    await asyncio.gather(*asked)
    say(ended=True)


def main() -> None:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description="Asks a policy server, and counts.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--rate", type=float, default=50.0, help="questions each second (%(default)s)")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.url, arguments.rate))


if __name__ == "__main__":
    main()
