"""Both clients behind one face, and how long a test waits for what is not broken."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from ratchet.client import Action, AsyncClient, Client

PATIENT = 20.0  # seconds that nothing takes unless it is broken


def until(condition: Callable[[], bool]) -> None:
    """Waits for what is sure to come."""
    end = time.monotonic() + PATIENT
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.001)


class Asks(Protocol):
    """Either client, called from ordinary code."""

    counts: Any

    def act(self, observation: Any, **arguments: Any) -> Action: ...
    def act_batch(self, observations: Any, **arguments: Any) -> list[Action]: ...
    def reward(self, reward: float, **arguments: Any) -> bool: ...
    def rewards(self, rewards: Any) -> bool: ...
    def close(self) -> None: ...


class Awaited:
    """An AsyncClient on a loop of its own."""

    def __init__(self, url: str, **settings: Any) -> None:
        self._runner = asyncio.Runner()
        self.client = AsyncClient(url, **settings)
        self.counts = self.client.counts

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        return lambda *values, **named: self._runner.run(method(*values, **named))

    def stop(self) -> None:
        self._runner.run(self.client.close())
        self._runner.close()


MakeClient = Callable[..., Asks]


@pytest.fixture(params=["blocking", "asyncio"])
def make_client(request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    """Makes clients of either kind, patient and strict if not told otherwise, and closes them."""
    made: list[Any] = []

    def build(url: str, **settings: Any) -> Asks:
        settings = {"timeout": PATIENT, **settings}
        if "fallback" not in settings:
            settings["strict"] = True
        client: Any = (Client if request.param == "blocking" else Awaited)(url, **settings)
        made.append(client)
        return client

    yield build
    for client in made:
        client.stop() if isinstance(client, Awaited) else client.close()
