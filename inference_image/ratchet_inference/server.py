"""The policy server put together: its parts, its paths, its life from start to drain."""

import asyncio
import logging
from typing import Any

import orjson

from ratchet_inference.application import TEXT, Application, Handler, guarded
from ratchet_inference.asking import Question, parse
from ratchet_inference.batching import Answering, Batching
from ratchet_inference.http import Exchange, Limits, Listener
from ratchet_inference.problems import Problem
from ratchet_inference.seams import Log, Residents
from ratchet_inference.sessions import Sessions
from ratchet_inference.settings import Settings
from ratchet_inference.stats import Stats

log = logging.getLogger(__name__)


class PolicyServer:
    """One process's server, on the running event loop.

    Args:
        settings: everything that can be chosen.
        residents: the policies, which may come later.
        decisions: where they are logged, if they are.

    """

    def __init__(self, settings: Settings, residents: Residents, decisions: Log | None = None) -> None:
        self.settings = settings
        self.residents = residents
        self.stats = Stats()
        self.sessions = Sessions(settings.max_sessions, settings.session_seconds)
        batching = Batching(
            settings.max_batch, settings.max_delay_ms / 1000, settings.deterministic, settings.arm
        )
        self.answering = Answering(residents, self.sessions, self.stats, batching, decisions)
        limits = Limits(
            body=settings.max_body_bytes,
            connections=settings.max_connections,
            request_seconds=settings.request_seconds,
            idle_seconds=settings.idle_seconds,
        )
        self.listener = Listener(Application(self._routes()).handle, limits, self.stats.refusals)
        self.port = 0

    async def start(self) -> None:
        """Opens the port."""
        settings = self.settings
        self.port = await self.listener.listen(settings.host, settings.port, settings.tls())
        log.info("serving", extra={"fields": {"host": settings.host, "port": self.port}})

    async def drain(self) -> None:
        """Says that it is not ready, answers for as long as traffic may still come, then ends."""
        settings = self.settings
        self.listener.draining = True
        log.info("draining", extra={"fields": {"connections": len(self.listener.connections)}})
        await asyncio.sleep(settings.drain_delay_seconds)
        await self.listener.drain(settings.drain_seconds)

    @property
    def ready(self) -> bool:
        """Whether traffic should come."""
        return self.residents.current is not None and not self.listener.draining

    def _routes(self) -> dict[bytes, dict[bytes, Handler]]:
        token = self.settings.token
        return {
            b"/v1/act": {b"POST": guarded(self._act, token)},
            b"/v1/stats": {b"GET": self._stats},
            b"/healthz": {b"GET": _healthy},
            b"/readyz": {b"GET": self._readiness},
        }

    def _act(self, exchange: Exchange) -> None:
        question = parse(exchange.body, self.settings.max_observations)
        question.received = exchange.received

        def done(question: Question) -> None:
            if question.problem is None:
                exchange.respond(200, question.answer())
            else:
                exchange.refuse(question.problem)

        question.done = done
        self.answering.submit(question)

    def _readiness(self, exchange: Exchange) -> None:
        if self.ready:
            exchange.respond(200, b"ready\n", TEXT)
        elif self.listener.draining:
            raise Problem(503, "draining", "the server is about to end")
        else:
            raise Problem(503, "no-policy", "no policy is loaded yet")

    def _stats(self, exchange: Exchange) -> None:
        exchange.respond(200, orjson.dumps(self.state()))

    def state(self) -> dict[str, Any]:
        """As `ServerStats`."""
        current, previous = self.residents.current, self.residents.previous
        return {
            **self.stats.to_wire(),
            "ready": self.ready,
            "draining": self.listener.draining,
            "current": current and current.digest,
            "previous": previous and previous.digest,
            "connections": len(self.listener.connections),
            "sessions": len(self.sessions),
        }


def _healthy(exchange: Exchange) -> None:
    exchange.respond(200, b"alive\n", TEXT)
