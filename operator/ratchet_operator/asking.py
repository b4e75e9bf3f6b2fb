"""One question to a pod over HTTP, and a bound on its answer: a pod's image may be anybody's."""

import asyncio
import contextlib

import aiohttp


def url_of(address: str, port: int) -> str:
    """Where a pod answers.

    Args:
        address: of the pod, IPv4 or IPv6.
        port: that it listens on.

    """
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


async def get(session: aiohttp.ClientSession, url: str, longest: int) -> bytes | None:
    """The body of an answer of status 200; None where there is none, or it is longer than so many bytes."""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                return None
            try:
                await response.content.readexactly(longest + 1)
            except asyncio.IncompleteReadError as end:
                return end.partial
    return None
