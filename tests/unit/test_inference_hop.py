"""The way to another server: what comes too late for one question is there for the next one."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from select import select
from typing import Any

import pytest
from ratchet_inference.hop import Hop, HopError
from test_inference_routing import GOOD, http_answer, stand_in

PATIENCE_SECONDS = 20.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


def late(work: Awaitable[bytes]) -> Awaitable[None]:
    async def fails() -> None:
        with pytest.raises(HopError, match="canary-timeout"):
            await work

    return fails()


def test_a_connection_whose_answer_was_late_takes_the_next_question() -> None:
    slow, asked = threading.Event(), list[bytes]()

    def answer(request: bytes) -> bytes:
        asked.append(request)
        if len(asked) == 1:
            slow.wait(PATIENCE_SECONDS)
        return http_answer(GOOD)

    async def play(port: int) -> int:
        hop, connects = Hop(f"http://127.0.0.1:{port}", "canary"), list[Any]()
        loop: Any = asyncio.get_running_loop()
        create = loop.create_connection

        async def counted(*arguments: Any, **options: Any) -> Any:
            connects.append(arguments)
            return await create(*arguments, **options)

        loop.create_connection = counted
        question = hop.ask(b"{}", 0.05, "spaces")
        await late(question)
        slow.set()
        await until(lambda: len(hop._idle) == 1)
        assert b'"action": 1' in await hop.ask(b"{}", PATIENCE_SECONDS, "spaces")
        hop.close()
        return len(connects)

    with stand_in(answer) as port:
        assert asyncio.run(play(port)) == 1


def test_an_answer_that_came_while_this_server_stood_still_was_in_time() -> None:
    budget = 0.05

    async def play(port: int) -> bytes:
        hop = Hop(f"http://127.0.0.1:{port}", "canary")
        await hop.ask(b"{}", PATIENCE_SECONDS, "spaces")
        (line,) = hop._idle
        asking = asyncio.create_task(hop.ask(b"{}", budget, "spaces"))
        await asyncio.sleep(0)  # it asks
        # As where the machine gives its processor to others.
        assert select([line.transport.get_extra_info("socket")], [], [], PATIENCE_SECONDS)[0]
        time.sleep(2 * budget)  # noqa: ASYNC251
        answer = await asking
        assert hop._idle == [line]
        hop.close()
        return answer

    with stand_in(lambda _: http_answer(GOOD)) as port:
        assert b'"action": 1' in asyncio.run(play(port))


def test_a_name_that_was_long_looked_up_is_looked_up_once() -> None:
    async def play(port: int) -> int:
        hop, asked, found = Hop(f"http://canary.test:{port}", "canary"), list[str](), asyncio.Event()
        loop: Any = asyncio.get_running_loop()
        look_up = loop.getaddrinfo

        async def slow(host: str, *arguments: Any, **options: Any) -> Any:
            asked.append(host)
            await found.wait()
            return await look_up("127.0.0.1", *arguments, **options)

        loop.getaddrinfo = slow
        await late(hop.ask(b"{}", 0.05, "spaces"))
        found.set()
        await until(lambda: len(hop._idle) == 1)
        assert b'"action": 1' in await hop.ask(b"{}", PATIENCE_SECONDS, "spaces")
        hop.close()
        return len(asked)

    with stand_in(lambda _: http_answer(GOOD)) as port:
        assert asyncio.run(play(port)) == 1


def test_an_answer_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ratchet_inference.hop.LATE_SECONDS", 0.05)
    silent = threading.Event()

    def never(_: bytes) -> None:
        silent.wait(PATIENCE_SECONDS)

    async def play(port: int) -> None:
        hop = Hop(f"http://127.0.0.1:{port}", "canary")
        lines = list[Any]()
        connect = hop._connect

        async def kept() -> Any:
            lines.append(await connect())
            return lines[-1]

        monkeypatch.setattr(hop, "_connect", kept)
        await late(hop.ask(b"{}", 0.02, "spaces"))
        await until(lambda: not lines[0].open)
        assert hop._idle == []

    with stand_in(never) as port:
        asyncio.run(play(port))
        silent.set()
