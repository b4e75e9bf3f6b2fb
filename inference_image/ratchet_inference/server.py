"""The policy server put together: its parts, its paths, its life from start to drain."""

import asyncio
import logging
from dataclasses import asdict
from typing import Any

import orjson

from ratchet.policies.artifact import PolicyLineage
from ratchet_inference.admin import Admin
from ratchet_inference.application import TEXT, Application, Routes, guarded, owned
from ratchet_inference.asking import Question, parse, read_json
from ratchet_inference.batching import Answering, Batching
from ratchet_inference.behind import Forwarding
from ratchet_inference.decisions.rewards import Rewards
from ratchet_inference.dispatch import Dispatch
from ratchet_inference.episodes import Episodes
from ratchet_inference.exchange import Exchange
from ratchet_inference.hop import MISDIRECTED
from ratchet_inference.http import Limits, Listener
from ratchet_inference.metrics import CONTENT_TYPE, render
from ratchet_inference.openinference import OpenInference
from ratchet_inference.problems import Problem
from ratchet_inference.recording import Recording
from ratchet_inference.retried import Retried
from ratchet_inference.seams import Log, Swappable
from ratchet_inference.sessions import Sessions
from ratchet_inference.settings import Settings
from ratchet_inference.stats import Stats

log = logging.getLogger(__name__)


class PolicyServer:
    """One process's server, on the running event loop.

    Args:
        settings: everything that can be chosen.
        residents: the policies, which may come later.
        rewards: what becomes of decisions; None takes no rewards.
        decisions: where decisions are logged, if they are.

    """

    def __init__(
        self,
        settings: Settings,
        residents: Swappable,
        rewards: Rewards | None = None,
        decisions: Log | None = None,
    ) -> None:
        self.settings = settings
        self.residents = residents
        self.stats = Stats()
        self._rewards = rewards
        self._decisions = decisions
        recording = None
        if rewards or decisions:
            recording = Recording(
                decisions.record if decisions else None, rewards.decided if rewards else None
            )
        self.sessions = Sessions(settings.max_sessions, settings.session_seconds)
        batching = Batching(
            settings.max_batch,
            settings.max_delay_ms / 1000,
            settings.fallback_ms / 1000,
            settings.deterministic,
            settings.response_cache,
        )
        self.answering = Answering(
            residents, self.sessions, self.stats, batching, recording.decided if recording else None
        )
        forwarding = Forwarding(
            settings.canary_ms / 1000,
            settings.token,
            settings.canary_requests,
            settings.mirror_requests,
            settings.tls_of_clients(),
            settings.deterministic,
        )
        self.dispatch = Dispatch(self.answering, residents, self.stats, recording, forwarding)
        self.episodes = Episodes(self.dispatch.ask, self.sessions, self._refused, settings.max_body_bytes)
        self.admin = Admin(residents, self.sessions, self.dispatch, self.stats)
        limits = Limits(
            body=settings.max_body_bytes,
            connections=settings.max_connections,
            request_seconds=settings.request_seconds,
            idle_seconds=settings.idle_seconds,
            connection_seconds=settings.connection_seconds,
        )
        operations = self._operations()
        routes = Application({**operations, **self._answers()})
        self._retried = Retried(settings.retry_memory) if settings.retry_memory else None
        self.listener = Listener(routes.handle, limits, self.stats.refusals)
        self.port = 0
        self._operations_listener: Listener | None = None
        if settings.operations_port:
            self._operations_listener = Listener(Application(operations).handle, limits, self.stats.refusals)

    async def start(self) -> None:
        """Opens the port."""
        settings = self.settings
        self.port = await self.listener.listen(settings.host, settings.port, settings.tls())
        if self._operations_listener:
            await self._operations_listener.listen(settings.host, settings.operations_port)
        log.info("serving", extra={"fields": {"host": settings.host, "port": self.port}})

    async def drain(self) -> None:
        """Says that it is not ready, answers for as long as traffic may still come, then ends."""
        settings = self.settings
        self.listener.draining = True
        log.info("draining", extra={"fields": {"connections": len(self.listener.connections)}})
        if self.residents.current is not None:
            await asyncio.sleep(settings.drain_delay_seconds)
        await self.listener.drain(settings.drain_seconds)
        await self.dispatch.close()
        if self._operations_listener:
            await self._operations_listener.drain(0)

    @property
    def ready(self) -> bool:
        """Whether traffic should come."""
        return self.residents.current is not None and not self.listener.draining

    def _operations(self) -> Routes:
        token = self.settings.admin_token
        return {
            b"/v1/stats": {b"GET": self._stats},
            b"/v1/policy": {b"PUT": owned(self.admin.put_policy, token)},
            b"/v1/route": {b"GET": self.admin.get_route, b"PUT": owned(self.admin.put_route, token)},
            b"/metrics": {b"GET": self._metrics},
            b"/healthz": {b"GET": _healthy},
            b"/readyz": {b"GET": self._readiness},
        }

    def _answers(self) -> Routes:
        settings = self.settings
        token = settings.token
        ask, most = self.dispatch.ask, settings.max_observations
        protocol = OpenInference(settings.name, self.residents, lambda: self.ready, ask, most)
        return {
            b"/v1/act": {b"POST": guarded(self._act, token)},
            b"/v1/episode": {b"GET": guarded(self.episodes.open, token)},
            b"/v1/reward": {b"POST": guarded(self._reward, token)},
            **protocol.routes(lambda handler: guarded(handler, token)),
        }

    def _act(self, exchange: Exchange) -> None:
        question = parse(exchange.body, self.settings.max_observations)
        question.received = exchange.received
        headers = exchange.headers
        if b"ratchet-arm" in headers or b"ratchet-hop" in headers:
            question.came(headers)
            if question.hop:
                self._refuse_other_spaces(headers.get(b"ratchet-spaces"))

        first = exchange.reply
        if question.ids and self._retried:
            first = self._retried.first(exchange.body, exchange.received, first)
            if first is None:
                return

        def done(question: Question) -> None:
            first(question.problem or question.answer())

        question.done = done
        if exchange.aged and (question.hop or not question.episodes):
            self._part(exchange)
        try:
            self.dispatch.ask(question)
        except Problem as problem:
            first(problem)

    def _refuse_other_spaces(self, wanted: bytes | None) -> None:
        """That an action is in a space by chance must not make it one that was meant."""
        current = self.residents.current
        if wanted and current and wanted.decode("latin-1") != self.answering.fitting(current).spaces:
            words = "the policy here observes or acts in other spaces than the one that asks"
            raise Problem(MISDIRECTED, "other-spaces", words)

    def _reward(self, exchange: Exchange) -> None:
        if self._rewards is None:
            raise Problem(404, "no-rewards", "this server takes no rewards: start it with --rewards")
        status, answer = self._rewards.receive(read_json(exchange.body))
        self._part(exchange)
        exchange.respond(status, orjson.dumps(answer))

    def _part(self, exchange: Exchange) -> None:
        """Between episodes an old connection ends: behind a Service only a new one can reach a new server.

        Where the policy has a memory, the connection's other episodes would lose theirs.
        """
        current = self.residents.current
        if exchange.aged and (current is None or not current.recurrent_size):
            exchange.part()

    def _refused(self, problem: Problem) -> None:
        self.stats.refusals[problem.code] += 1

    def _readiness(self, exchange: Exchange) -> None:
        if self.ready:
            exchange.respond(200, b"ready\n", TEXT)
        elif self.listener.draining:
            raise Problem(503, "draining", "the server is about to end")
        else:
            raise Problem(503, "no-policy", "no policy is loaded yet")

    def _metrics(self, exchange: Exchange) -> None:
        exchange.respond(200, render(self.state()), CONTENT_TYPE)

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
            "spaces": current and self.answering.fitting(current).spaces,
            "lineage": current and _lineage(current.lineage),
            "evaluated": current and current.evaluated and current.evaluated.to_wire(),
            "route": {**self.dispatch.route.to_wire(), "breaker": self.dispatch.breaker},
            "connections": len(self.listener.connections),
            "websockets": len(self.episodes),
            "repeated": self._retried.repeats if self._retried else 0,
            "sessions": len(self.sessions),
            "episodes": self._rewards.episodes() if self._rewards else [],
            "rewards": self._rewards.counts if self._rewards else {},
            "decisions": _totals(self._decisions.counts) if self._decisions else {},
        }


def _lineage(said: PolicyLineage | None) -> dict[str, str | int] | None:
    """As `Lineage`, without what the policy does not say."""
    if said is None or not said.job:
        return None
    known = {"job": said.job, "attempt": said.attempt, "checkpoint": said.checkpoint, "steps": said.steps}
    return {name: value for name, value in {**known, "configuration": said.config}.items() if value != ""}


def _totals(counts: Any) -> dict[str, int]:
    """Numbers by word; those by reason get a word each."""
    totals: dict[str, int] = {}
    values: dict[str, int | dict[str, int]] = asdict(counts)
    for name, value in values.items():
        if isinstance(value, dict):
            totals |= {f"{name}.{reason}": number for reason, number in value.items()}
        else:
            totals[name] = value
    return totals


def _healthy(exchange: Exchange) -> None:
    exchange.respond(200, b"alive\n", TEXT)
