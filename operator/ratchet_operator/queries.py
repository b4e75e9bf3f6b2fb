"""Asks Prometheus what the guards of PolicyDeployments want to know; nobody waits for it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
from pydantic import ValidationError

from ratchet.api.v1alpha1.policydeployment import PolicyDeploymentSpec, PrometheusGuard
from ratchet.evidence import Decision, source_down
from ratchet_operator.kinds import Json, uid_of
from ratchet_operator.rollout import prometheus
from ratchet_operator.specs import parsed

EVERY = 5.0  # seconds between two questions; most scrape more rarely


@dataclass(slots=True)
class _Asked:
    """What is kept of one trial under the same guards: what was found under others is no verdict of these."""

    trial: str
    guards: Sequence[PrometheusGuard]
    found: dict[str, Decision] = field(default_factory=dict[str, Decision])
    task: asyncio.Task[None] | None = None


class Queries:
    """The newest verdict of each query of each trial."""

    def __init__(self) -> None:
        self._asked: dict[str, _Asked] = {}

    def forget(self, uid: str) -> None:
        """The PolicyDeployment is gone, or nothing is on trial."""
        asked = self._asked.pop(uid, None)
        if asked is not None and asked.task is not None:
            asked.task.cancel()

    def found(self, session: aiohttp.ClientSession, obj: Json, trial: str | None) -> tuple[Decision, ...]:
        """What the queries of a PolicyDeployment found, which are asked on.

        Args:
            session: that they are asked with.
            obj: the PolicyDeployment.
            trial: the arm on trial, None where nothing is.

        """
        uid = uid_of(obj)
        try:
            guards = parsed(PolicyDeploymentSpec, obj).guards.prometheus
        except ValidationError:  # the step says what is wrong with the spec
            guards = []
        if trial is None or not guards:
            self.forget(uid)
            return ()
        asked = self._asked.get(uid)
        if asked is None or (asked.trial, asked.guards) != (trial, guards):
            self.forget(uid)
            asked = self._asked[uid] = _Asked(trial, guards)
        if asked.task is None or asked.task.done():
            asked.task = asyncio.create_task(_ask(session, asked))
        return tuple(
            asked.found.get(guard.name, source_down(guard.name, "it was not asked yet")) for guard in guards
        )


async def _ask(session: aiohttp.ClientSession, asked: _Asked) -> None:
    asked.found = {one.guard: one for one in await prometheus.ask(session, asked.guards)}
    await asyncio.sleep(EVERY)
