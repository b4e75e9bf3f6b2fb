"""A chat is told once, again only where it certainly was not told, and nobody is told where it is."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from ratchet_operator.plan import Occurrence
from ratchet_operator.webhook import TRIES, Webhook, message_of

from ratchet.evidence import Decision, Verdict

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
    async def talk(webhook: Webhook, url: str) -> list[bool]:
        return [await webhook.tell(url, id_, message_of("team/policy", FAILED, DECISIONS)) for id_ in ids]

    return asyncio.run(_served(chat, talk, seconds))


async def _served(
    chat: Chat, talk: Callable[[Webhook, str], Awaitable[list[bool]]], seconds: float
) -> list[bool]:
    app = web.Application()
    app.router.add_post("/{path:.*}", chat.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/{SECRET}"
            return await talk(Webhook(session, seconds, pause=0.001), url)
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
            webhook = Webhook(session, 2.0, pause=0.001)
            urls = (f"http://127.0.0.1:9/{SECRET}", f"nonsense/{SECRET}", f"http://a b/{SECRET}", "")
            return [await webhook.tell(url, str(n), {}) for n, url in enumerate(urls)]

    assert asyncio.run(nowhere()) == [False] * 4
    assert telling(Chat(404), "id-1") == [False]
    mine = [record for record in caplog.records if record.name == "ratchet.webhook"]
    assert len(mine) == 5
    assert not any(SECRET in str(vars(record)) for record in caplog.records if "access" not in record.name)
