"""Those who ask a Service once, all at the same time, and say what they got as one line of JSON.

    python visitors.py --url http://cartpole:8080 --number 20

None of them tries again, so an answer counts for what it took. Without a number it only waits for SIGTERM.
"""

import argparse
import asyncio
import json
import signal
import time

from ratchet.client import AsyncClient, AsyncEpisode
from ratchet.client.errors import PolicyError
from ratchet.client.retrying import Retries

OBSERVATION = [0.01, -0.02, 0.03, -0.04]
PATIENCE_SECONDS = 60.0


async def visit(url: str, number: int, *, is_episode: bool) -> None:
    async with AsyncClient(
        url, strict=True, timeout=PATIENCE_SECONDS, retries=Retries(attempts=1), connections=number
    ) as client:

        async def one() -> tuple[str, float]:
            began = time.monotonic()
            try:
                if is_episode:
                    episode = AsyncEpisode(client)
                    answers = [await episode.act(OBSERVATION) for _ in range(3)]
                    await episode.close()
                    assert len({answer.digest for answer in answers}) == 1
                else:
                    await client.act(OBSERVATION)
            except PolicyError as error:
                return f"{type(error).__name__}: {error}", time.monotonic() - began
            return "", time.monotonic() - began

        got = await asyncio.gather(*(one() for _ in range(number)))
    errors = sorted({error for error, _ in got if error})
    seconds = sorted(seconds for error, seconds in got if not error)
    print(json.dumps({"answers": len(seconds), "errors": errors, "seconds": seconds[-1:]}))  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--episodes", action="store_true")
    arguments = parser.parse_args()
    if arguments.number:
        asyncio.run(visit(arguments.url, arguments.number, is_episode=arguments.episodes))
    else:
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main()
