"""Tells a chat what a rollout does: JSON that Slack takes, at most once for each occurrence.

The URL is a secret: it is in no log and in no error. What can't be told is logged and forgotten, for a
rollout waits for no chat.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import aiohttp

from ratchet.evidence import Decision
from ratchet_operator.plan import Occurrence

log = logging.getLogger("ratchet.webhook")

REMEMBERED = 1_024
TRIES = 3
# What Slack shows at most: https://api.slack.com/reference/messaging/attachments
LONGEST_TEXT = 3_000
COLORS = {"Normal": "good", "Warning": "danger"}


def message_of(subject: str, occurrence: Occurrence, decisions: Sequence[Decision] = ()) -> dict[str, Any]:
    """The JSON that is posted.

    Args:
        subject: namespace/name of the PolicyDeployment.
        occurrence: what happened.
        decisions: of the guards at that moment, a field each.

    """
    fields = [
        {"title": f"{one.guard}: {one.verdict.value}", "value": one.sentence[:LONGEST_TEXT], "short": False}
        for one in decisions
    ]
    return {
        "text": f"{subject}: {occurrence.reason}. {occurrence.message}"[:LONGEST_TEXT],
        "attachments": [{"color": COLORS[occurrence.type], "fields": fields}],
    }


class Webhook:
    """Posts messages.

    Args:
        seconds: for each try.
        pause: seconds before the second try; doubled before each further one.

    """

    def __init__(self, seconds: float = 5.0, pause: float = 1.0) -> None:
        self._timeout = aiohttp.ClientTimeout(total=seconds)
        self._pause = pause
        self._told: OrderedDict[str, None] = OrderedDict()

    async def tell(self, session: aiohttp.ClientSession, url: str, id_: str, message: dict[str, Any]) -> bool:
        """Posts a message, unless one with this id was posted before; raises nothing.

        Tried again only where it certainly was not taken: no connection, or status 429 or 503. An answer that
        does not come may mean that the message did.

        Returns:
            Whether the other side said that it took it.

        """
        if id_ in self._told:
            return False
        self._told[id_] = None
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        found = ""
        for number in range(TRIES):
            if number:
                await asyncio.sleep(self._pause * 2 ** (number - 1))
            try:
                async with session.post(
                    url, json=message, timeout=self._timeout, allow_redirects=False
                ) as response:
                    if 200 <= response.status < 300:
                        return True
                    found = f"status {response.status}"
                    if response.status not in (429, 503):
                        break
            except aiohttp.ClientConnectorError as error:
                found = type(error).__name__
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                # Only its kind: the text of some of them holds the URL.
                found = type(error).__name__
                break
        log.warning("a webhook did not take a message", extra={"id": id_, "found": found})
        return False
