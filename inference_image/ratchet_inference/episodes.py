"""`GET /v1/episode`: one episode over a WebSocket. A message is an act request, and is answered by a message.

Answers come in the order of the messages. A message that is wrong is answered with an error, and the episode
goes on. The connection remembers which policy answers it. Its end is the end of the episode.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast
from urllib.parse import parse_qs

from ratchet_inference.asking import LONGEST_NAME, Question, from_json, read_json
from ratchet_inference.exchange import Exchange
from ratchet_inference.problems import Problem, bad_request
from ratchet_inference.sessions import Sessions
from ratchet_inference.websocket import WebSocket, handshake


class Episodes:
    """Accepts episodes.

    Args:
        ask: takes questions.
        sessions: where episodes are forgotten when they end.
        refused: is told about each message that was wrong.
        largest: bytes of one message.

    """

    def __init__(
        self,
        ask: Callable[[Question], None],
        sessions: Sessions,
        refused: Callable[[Problem], None],
        largest: int,
    ) -> None:
        self._ask = ask
        self._sessions = sessions
        self._refused = refused
        self._largest = largest
        self._sockets: dict[str, WebSocket] = {}

    def __len__(self) -> int:
        """Those that are open."""
        return len(self._sockets)

    def open(self, exchange: Exchange) -> None:
        """`GET /v1/episode?episode=NAME`; without a name the server gives one."""
        accepted = handshake(exchange)
        names = parse_qs(exchange.query.decode("latin-1")).get("episode", [])
        name = names[0] if names else f"ws-{os.urandom(8).hex()}"
        if len(name) > LONGEST_NAME:
            raise bad_request("bad-field", f"episode must be text of 1 to {LONGEST_NAME} characters")

        def build(transport: asyncio.Transport) -> WebSocket:
            # A place for each answer, in the order the messages came.
            waiting: deque[list[bytes]] = deque()
            policy: Sequence[str] | None = None

            def receive(message: bytes) -> None:
                answer: list[bytes] = []
                waiting.append(answer)

                def finish(body: bytes) -> None:
                    answer.append(body)
                    while waiting and waiting[0]:
                        socket.send(waiting.popleft()[0])

                def done(question: Question) -> None:
                    nonlocal policy
                    if question.problem:
                        self._refused(question.problem)
                        finish(question.problem.body())
                    else:
                        if question.fallbacks[0] is None:
                            policy = question.digests
                        finish(question.answer())

                try:
                    question = _question(message, name)
                    if question.ids:
                        question.draw_by(message)
                    question.came(exchange.headers)
                    question.policies = question.policies or policy
                    question.received = time.perf_counter()
                    question.done = done
                    self._ask(question)
                except Problem as problem:
                    self._refused(problem)
                    finish(problem.body())

            def closed() -> None:
                # A client that came again has the episode now.
                if self._sockets.get(name) is socket:
                    del self._sockets[name]
                    self._sessions.forget(name)

            socket = self._sockets[name] = WebSocket(transport, self._largest, receive, closed)
            return socket

        exchange.upgrade(accepted, build)


def _question(message: bytes, name: str) -> Question:
    body = read_json(message)
    if not isinstance(body, dict) or "observation" not in body:
        raise bad_request("no-observation", 'send one observation a message: {"observation": [0.1, 0.2]}')
    if "episode" in body:
        raise bad_request("unknown-field", "the connection is the episode: leave the field episode out")
    return from_json({**cast("dict[str, Any]", body), "episode": name}, 1)
