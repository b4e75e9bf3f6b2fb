"""The client for ordinary code: one call, one action. Any number of threads may share one."""

import socket
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from ratchet.client.base import ClientBase, Endpoint, of_one
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

READ = 65_536

T = TypeVar("T")


class Client(ClientBase["_Connection"]):
    """Asks a policy server for actions; its settings are those of `ClientBase`."""

    def act(
        self,
        observation: Any,
        *,
        episode: str | None = None,
        mask: Any = None,
        deterministic: bool | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> Action:
        """One action.

        Args:
            observation: numbers in the policy's shape: lists or an array.
            episode: the same name for each step of an episode; keeps its arm, its memory and its statistics.
            mask: true where an action is allowed.
            deterministic: take the most likely action; None leaves it to the server.
            temperature: above 1 more even, below 1 more decided.
            seed: of the draw.

        Raises:
            PolicyError: there is no answer, and `strict` is set.

        """
        id_ = self.names.next()
        try:
            policy = self._policies.of(episode)
            body = act_body(observation, id_, episode, policy, mask, deterministic, temperature, seed)
            action = self._ask(
                "/v1/act", body, self._timeout, of_one(episode), lambda answer: read_action(answer, id_)
            )
        except PolicyError as error:
            return self.instead(error, observation, mask, id_)
        self._policies.answered(episode, action)
        return action

    def act_batch(
        self,
        observations: Any,
        *,
        episodes: Sequence[str] | None = None,
        masks: Any = None,
        deterministic: bool | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> list[Action]:
        """One action for each of several observations, in one request; arguments and errors as `act`."""
        ids = [self.names.next() for _ in observations]
        try:
            named = () if episodes is None else episodes
            policies = [self._policies.of(episode) for episode in named]
            body = batch_body(observations, ids, episodes, policies, masks, deterministic, temperature, seed)
            actions = self._ask("/v1/act", body, self._timeout, named, lambda answer: read_batch(answer, ids))
        except PolicyError as error:
            return [
                self.instead(error, observation, None if masks is None else masks[i], ids[i])
                for i, observation in enumerate(observations)
            ]
        for episode, action in zip(named, actions, strict=False):
            self._policies.answered(episode, action)
        return actions

    def reward(
        self,
        reward: float,
        *,
        id: str | None = None,  # noqa: A002 - the contract's name
        episode: str | None = None,
        length: int | None = None,
    ) -> bool:
        """The reward of a decision, or the return of an episode; whether the server has it.

        Raises:
            PolicyError: it has not, and `strict` is set.
            TypeError: it is for both or for neither.

        """
        body = reward_body(reward, id, episode, length)
        self._policies.ended([episode])
        return self._send(body, of_one(episode))

    def rewards(self, rewards: Sequence[dict[str, Any]]) -> bool:
        """Several at once: `{"id", "reward"}` or `{"episode", "return", "length"}`; as `reward`."""
        self._policies.ended(row.get("episode") for row in rewards)
        return self._send({"rewards": rewards}, ())

    def close(self) -> None:
        """Closes the connections that wait for the next request."""
        while connection := self._pool.take():
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def attempt(self, once: Callable[[float], T]) -> T:
        """Calls `once` with the deadline (of time.monotonic) of an action, again where that may help.

        Raises:
            PolicyError: of the last attempt.

        """
        return self._try(self._timeout, once)

    def _send(self, body: dict[str, Any], episodes: Sequence[str]) -> bool:
        try:
            self._ask("/v1/reward", encode(body), self._reward_timeout, episodes, read_json)
        except PolicyError as error:
            self._failed(error, "a reward is lost")
            self.counts["lost rewards"] += 1
            return False
        return True

    def _ask(
        self, path: str, body: bytes, seconds: float, episodes: Sequence[str], read: Callable[[Answer], T]
    ) -> T:
        request = self.endpoint.post(path, body)
        return self._try(seconds, lambda deadline: read(good(self._exchange(request, deadline, episodes))))

    def _try(self, seconds: float, once: Callable[[float], T]) -> T:
        """Calls `once` with the deadline until it has an answer, or there is none to be had."""
        deadline = time.monotonic() + seconds
        self._budget.request()
        self.counts["requests"] += 1
        attempt = 1
        while True:
            try:
                return once(deadline)
            except PolicyError as problem:
                error = problem
            pause = self._budget.pause(error, attempt, deadline - time.monotonic())
            if pause is None:
                raise error
            time.sleep(pause)
            attempt += 1
            self.counts["retries"] += 1

    def _exchange(self, request: bytes, deadline: float, episodes: Sequence[str]) -> Answer:
        connection = self._pool.take(episodes)
        if connection is not None:
            try:
                return self._over(connection, request, deadline, episodes)
            except Unreachable:
                # The server closed it while it was idle, which says nothing of the server.
                if connection.begun:
                    raise
        return self._over(_Connection(self.endpoint, deadline), request, deadline, episodes)

    def _over(
        self, connection: "_Connection", request: bytes, deadline: float, episodes: Sequence[str]
    ) -> Answer:
        answer = connection.exchange(request, deadline)
        if answer.reusable and len(self._pool) < self._connections:
            self._pool.give(connection, episodes)
        else:
            connection.close()
        return answer


class _Connection:
    """One socket, for one request at a time.

    Raises what `connect` raises.
    """

    def __init__(self, endpoint: Endpoint, deadline: float) -> None:
        self.begun = False
        self._socket = connect(endpoint, deadline)

    def exchange(self, request: bytes, deadline: float) -> Answer:
        """Sends a request and receives its answer; after any error the connection is closed.

        Raises:
            TimedOut, Unreachable, BadAnswer: as their names say.

        """
        reading = Reading()
        try:
            self._socket.settimeout(left(deadline))
            self._socket.sendall(request)
            while True:
                answer = reading.feed(self._socket.recv(READ))
                if answer is not None:
                    return answer
                self._socket.settimeout(left(deadline))
        except PolicyError:
            self.close()
            raise
        except TimeoutError as error:
            self.close()
            raise TimedOut("no answer in time") from error
        except OSError as error:
            self.close()
            raise Unreachable(f"the connection broke: {error}") from error
        finally:
            self.begun = reading.begun

    def close(self) -> None:
        """Ends it."""
        self._socket.close()


def connect(endpoint: Endpoint, deadline: float) -> socket.socket:
    """A new connection.

    Raises:
        Unreachable: nobody listens there, or the certificate is not trusted.
        TimedOut: the deadline (of time.monotonic) passed.

    """
    try:
        made = socket.create_connection((endpoint.host, endpoint.port), left(deadline))
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if endpoint.tls:
                made.settimeout(left(deadline))
                made = endpoint.tls.wrap_socket(made, server_hostname=endpoint.host)
        except (OSError, PolicyError):
            made.close()
            raise
    except TimeoutError as error:
        raise TimedOut(f"no connection to {endpoint} in time") from error
    except OSError as error:
        raise Unreachable(f"no connection to {endpoint}: {error}") from error
    return made


def left(deadline: float) -> float:
    """Seconds until then; raises TimedOut where there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimedOut("no answer in time")
    return seconds
