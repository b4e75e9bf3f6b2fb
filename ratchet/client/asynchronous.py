"""The client for asyncio, of one event loop. It does what the blocking one does, for many callers at once."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, Self, TypeVar

from ratchet.client.base import ClientBase, of_one
from ratchet.client.contract import (
    Action,
    act_body,
    batch_body,
    encode,
    good,
    read_action,
    read_batch,
    read_json,
    reward_body,
)
from ratchet.client.errors import PolicyError, TimedOut, Unreachable
from ratchet.client.http import Answer, Reading

T = TypeVar("T")


class AsyncClient(ClientBase["_Connection"]):
    """As `Client`, with coroutines; its settings are those of `ClientBase`."""

    @cached_property
    def _room(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(self._connections)

    async def act(
        self,
        observation: Any,
        *,
        episode: str | None = None,
        mask: Any = None,
        deterministic: bool | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> Action:
        """As `Client.act`."""
        id_ = self.names.next()
        try:
            policy = self._policies.of(episode)
            body = act_body(observation, id_, episode, policy, mask, deterministic, temperature, seed)
            action = await self._ask(
                "/v1/act", body, self._timeout, of_one(episode), lambda answer: read_action(answer, id_)
            )
        except PolicyError as error:
            return self.instead(error, observation, mask, id_)
        self._policies.answered(episode, action)
        return action

    async def act_batch(
        self,
        observations: Any,
        *,
        episodes: Sequence[str] | None = None,
        masks: Any = None,
        deterministic: bool | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> list[Action]:
        """As `Client.act_batch`."""
        ids = [self.names.next() for _ in observations]
        try:
            named = () if episodes is None else episodes
            policies = [self._policies.of(episode) for episode in named]
            body = batch_body(observations, ids, episodes, policies, masks, deterministic, temperature, seed)
            actions = await self._ask(
                "/v1/act", body, self._timeout, named, lambda answer: read_batch(answer, ids)
            )
        except PolicyError as error:
            return [
                self.instead(error, observation, None if masks is None else masks[i], ids[i])
                for i, observation in enumerate(observations)
            ]
        for episode, action in zip(named, actions, strict=False):
            self._policies.answered(episode, action)
        return actions

    async def reward(
        self,
        reward: float,
        *,
        id: str | None = None,  # noqa: A002 - the contract's name
        episode: str | None = None,
        length: int | None = None,
    ) -> bool:
        """As `Client.reward`."""
        body = reward_body(reward, id, episode, length)
        self._policies.ended([episode])
        return await self._send(body, of_one(episode))

    async def rewards(self, rewards: Sequence[dict[str, Any]]) -> bool:
        """As `Client.rewards`."""
        self._policies.ended(row.get("episode") for row in rewards)
        return await self._send({"rewards": rewards}, ())

    async def close(self) -> None:
        """Closes the connections that wait for the next request."""
        while connection := self._pool.take():
            connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def attempt(self, once: Callable[[], Awaitable[T]]) -> T:
        """As `Client.attempt`; the deadline cancels `once`."""
        return await self._try(self._timeout, once)

    async def _send(self, body: dict[str, Any], episodes: Sequence[str]) -> bool:
        try:
            await self._ask("/v1/reward", encode(body), self._reward_timeout, episodes, read_json)
        except PolicyError as error:
            self._failed(error, "a reward is lost")
            self.counts["lost rewards"] += 1
            return False
        return True

    async def _ask(
        self, path: str, body: bytes, seconds: float, episodes: Sequence[str], read: Callable[[Answer], T]
    ) -> T:
        request = self.endpoint.post(path, body)

        async def once() -> T:
            async with self._room:
                return read(good(await self._exchange(request, episodes)))

        return await self._try(seconds, once)

    async def _try(self, seconds: float, once: Callable[[], Awaitable[T]]) -> T:
        """Awaits `once` until it has an answer, or there is none to be had."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        self._budget.request()
        self.counts["requests"] += 1
        attempt = 1
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    return await once()
            except TimeoutError:
                error = TimedOut("no answer in time")
            except PolicyError as problem:
                error = problem
            pause = self._budget.pause(error, attempt, deadline - loop.time())
            if pause is None:
                raise error
            await asyncio.sleep(pause)
            attempt += 1
            self.counts["retries"] += 1

    async def _exchange(self, request: bytes, episodes: Sequence[str]) -> Answer:
        connection = self._pool.take(episodes)
        while connection is not None and not connection.open:
            connection = self._pool.take()
        if connection is not None:
            try:
                return await self._over(connection, request, episodes)
            except Unreachable:
                # The server closed it while it was idle, which says nothing of the server.
                if connection.begun:
                    raise
        return await self._over(await self._connect(), request, episodes)

    async def _connect(self) -> "_Connection":
        endpoint = self.endpoint
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, endpoint.host, endpoint.port, ssl=endpoint.tls
            )
        except TimeoutError:
            raise
        except OSError as error:
            raise Unreachable(f"no connection to {endpoint}: {error}") from error
        return connection

    async def _over(self, connection: "_Connection", request: bytes, episodes: Sequence[str]) -> Answer:
        try:
            answer = await connection.exchange(request)
        except BaseException:
            connection.close()
            raise
        if answer.reusable and connection.open:
            self._pool.give(connection, episodes)
        else:
            connection.close()
        return answer


class _Connection(asyncio.Protocol):
    """One connection, for one request at a time."""

    def __init__(self) -> None:
        self.begun = False
        self.open = False
        self._transport: asyncio.Transport | None = None
        self._reading: Reading | None = None
        self._waiter: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server is there."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type
        self._transport = transport
        self.open = True

    def data_received(self, data: bytes) -> None:
        """A piece of the answer; what comes unasked ends the connection."""
        reading, waiter = self._reading, self._waiter
        if reading is None or waiter is None or waiter.done():
            self.close()
            return
        try:
            answer = reading.feed(data)
        except PolicyError as error:
            self._finish(error)
            return
        if answer is not None:
            self._finish(answer)

    def eof_received(self) -> None:
        """The server sends no more."""
        self.open = False
        if self._reading is not None:
            try:
                answer = self._reading.feed(b"")
            except PolicyError as error:
                self._finish(error)
            else:
                if answer is not None:
                    self._finish(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.open = False
        self._finish(Unreachable(f"the connection broke: {exc or 'closed'}"))

    async def exchange(self, request: bytes) -> Answer:
        """Sends a request and receives its answer.

        Raises:
            Unreachable, BadAnswer: as their names say.

        """
        if self._transport is None or not self.open:
            self.begun = False
            raise Unreachable("the connection is closed")
        self._reading = Reading()
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._waiter
        finally:
            self.begun = self._reading.begun
            self._reading = self._waiter = None

    def close(self) -> None:
        """Ends it."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, outcome: Answer | PolicyError) -> None:
        if self._waiter is None or self._waiter.done():
            return
        if isinstance(outcome, Answer):
            self._waiter.set_result(outcome)
        else:
            self._waiter.set_exception(outcome)
