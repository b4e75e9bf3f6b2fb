"""A chat is told once, again only where it certainly was not told, and nobody is told where it is."""

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import aiohttp
import pytest
from aiohttp import web
from fakeapi import eventually
from ratchet_operator.adminkey import AdminKey
from ratchet_operator.cache import Cache
from ratchet_operator.kinds import POLICY_DEPLOYMENT
from ratchet_operator.plan import Occurrence, Plan
from ratchet_operator.serving import Serving
from ratchet_operator.settings import Installation
from ratchet_operator.waker import Waker
from ratchet_operator.webhook import TRIES, Webhook, message_of

from ratchet.evidence import Decision, Verdict

T = TypeVar("T")
SECRET = "T000/B000/a-secret-token"
FAILED = Occurrence("Warning", "RollBackFailed", "5% of 180 canary answers are errors.", "id-1")
DECISIONS = [
    Decision("errorRate", Verdict.FAIL, "5% of 180 canary answers are errors."),
    Decision("latency", Verdict.PASS, "p99 is 5 ms on canary."),
]


class Chat:
    """Answers with each status in turn, then with 200; 0 stands for no answer."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = [*statuses]
        self.told: list[Any] = []

    async def handle(self, request: web.Request) -> web.Response:
        assert request.path == f"/{SECRET}"
        self.told.append(await request.json())
        status = self.statuses.pop(0) if self.statuses else 200
        if not status:
            await asyncio.get_running_loop().create_future()
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})


def telling(chat: Chat, *ids: str, seconds: float = 10.0) -> Sequence[bool]:
    async def talk(session: aiohttp.ClientSession, url: str) -> list[bool]:
        webhook, message = Webhook(seconds, pause=0.001), message_of("team/policy", FAILED, DECISIONS)
        return [await webhook.tell(session, url, id_, message) for id_ in ids]

    return asyncio.run(_served(chat, talk))


async def _served(chat: Chat, talk: Callable[[aiohttp.ClientSession, str], Awaitable[T]]) -> T:
    app = web.Application()
    app.router.add_post("/{path:.*}", chat.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/{SECRET}"
            return await talk(session, url)
    finally:
        await runner.cleanup()


def test_a_message_is_what_slack_shows():
    chat = Chat()
    assert telling(chat, "id-1") == [True]
    (message,) = chat.told
    assert message["text"] == "team/policy: RollBackFailed. 5% of 180 canary answers are errors."
    (attachment,) = message["attachments"]
    assert attachment["color"] == "danger"
    assert [field["title"] for field in attachment["fields"]] == ["errorRate: Fail", "latency: Pass"]


def test_an_occurrence_is_told_once():
    chat = Chat()
    assert telling(chat, "id-1", "id-1", "id-2") == [True, False, True]
    assert len(chat.told) == 2


OBJ = {
    "metadata": {"namespace": "team", "name": "policy", "uid": "u"},
    "spec": {"webhook": {"secretRef": {"name": "chat"}}},
}


def of_operator(url: str) -> Serving:
    async def secret(*_: Any) -> Any:
        return {"data": {"WEBHOOK_URL": base64.b64encode(url.encode()).decode()}}

    nothing: Any = SimpleNamespace(servers_said=None)
    waker, cache = Waker("", range(0), lambda *_: None), Cache([POLICY_DEPLOYMENT])
    return Serving(SimpleNamespace(get=secret), cache, *[nothing] * 3, Installation(), AdminKey(""), waker)


def test_the_operator_tells_what_it_decides_again_once_too():
    chat = Chat()

    async def decide_twice(_: aiohttp.ClientSession, url: str) -> None:
        serving = of_operator(url)
        for _ in range(2):
            serving.tell(OBJ, Plan(occurrences=(FAILED,)))
            await asyncio.gather(*serving._telling)  # pyright: ignore[reportPrivateUsage]

    asyncio.run(_served(chat, decide_twice))
    assert len(chat.told) == 1


def test_an_operator_that_ends_tells_no_more():
    chat = Chat(0)

    async def end(_: aiohttp.ClientSession, url: str) -> None:
        serving = of_operator(url)
        running = asyncio.create_task(serving.run())
        serving.tell(OBJ, Plan(occurrences=(FAILED,)))
        (telling,) = serving._telling  # pyright: ignore[reportPrivateUsage]
        await eventually(lambda: bool(chat.told))

        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

        assert telling.cancelled()

    asyncio.run(_served(chat, end))


@pytest.mark.parametrize(
    ("statuses", "is_taken", "times"),
    [
        ((429, 503), True, 3),
        ((503,) * TRIES, False, TRIES),
        ((404,), False, 1),
        ((500,), False, 1),
        ((302,), False, 1),
        ((0,), False, 1),
    ],
)
def test_it_is_told_again_only_where_it_was_certainly_not_taken(
    statuses: tuple[int, ...], is_taken: bool, times: int
):
    chat = Chat(*statuses)
    assert telling(chat, "id-1", seconds=10.0 if all(statuses) else 0.3) == [is_taken]
    assert len(chat.told) == times


def test_no_log_and_no_error_says_where_the_chat_is(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)

    async def nowhere() -> list[bool]:
        async with aiohttp.ClientSession() as session:
            webhook = Webhook(2.0, pause=0.001)
            urls = (f"http://127.0.0.1:9/{SECRET}", f"nonsense/{SECRET}", f"http://a b/{SECRET}", "")
            return [await webhook.tell(session, url, str(n), {}) for n, url in enumerate(urls)]

    assert asyncio.run(nowhere()) == [False] * 4
    assert telling(Chat(404), "id-1") == [False]
    mine = [record for record in caplog.records if record.name == "ratchet.webhook"]
    assert len(mine) == 5
    assert not any(SECRET in str(vars(record)) for record in caplog.records if "access" not in record.name)
