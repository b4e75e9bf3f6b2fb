"""Which arm answers: this server, or the canary behind it. An episode keeps the arm of its first step.

A question that names the policy that its episode runs on goes there, whatever the weight and whichever server
it reaches; one that names none, or one that is gone, goes where the hash of its episode says.
The canary's answer is checked like a policy's own; when it is late, wrong or missing, this server answers.
`arm` in an answer is the one that was chosen, `digest` and `fallback` say who answered in fact. Of what this
server answers itself, the canary may get copies, whose answers are checked and counted, and given to nobody.
A canary that fails is left alone but for one copy from time to time, until it answers one.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from functools import partial
from hashlib import blake2b
from typing import Any

from ratchet.api.v1alpha1.serverstats import Route
from ratchet_inference.asking import CANARY, SHADOW, STABLE, Question
from ratchet_inference.batching import Answering
from ratchet_inference.behind import Behind, Forwarding
from ratchet_inference.breaker import Breaker, State
from ratchet_inference.fitting import Fitting
from ratchet_inference.hop import HopError
from ratchet_inference.problems import Problem, bad_request, internal
from ratchet_inference.recording import Recording
from ratchet_inference.seams import Residents
from ratchet_inference.stats import Stats

log = logging.getLogger(__name__)

REACH_SECONDS = 0.25  # that whoever gives a route waits for the way to its canary


def share(salt: str, episode: str) -> float:
    """Where an episode lies in [0, 1). Below the weight it is the canary's, so that a ramp only adds."""
    digest = blake2b(f"{salt}\0{episode}".encode(errors="surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) * 2.0**-53


class Dispatch:
    """Sends each question to its arm."""

    def __init__(
        self,
        answering: Answering,
        residents: Residents,
        stats: Stats,
        recording: Recording | None,
        forwarding: Forwarding,
    ) -> None:
        self.route = Route()
        self._canary: Behind | None = None
        self._shadow: Behind | None = None
        self._answering = answering
        self._residents = residents
        self._stats = stats
        self._recording = recording
        self._forwarding = forwarding
        self._random = random.Random()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reaching: asyncio.Task[None] | None = None

    @property
    def breaker(self) -> State:
        """Of the canary."""
        return self._canary.breaker.state if self._canary else "Closed"

    def set_route(self, route: Route) -> None:
        """Takes a new route at once; questions on their way end as they began.

        A new canary gets its share as soon as there is a way to it.

        Raises:
            Problem: it is older than the one in force, or another one of the same generation, or its canary
                has no address.

        """
        before = self.route
        if route.generation < before.generation or (
            route.generation == before.generation != 0 and route != before
        ):
            words = f"the route in force has generation {before.generation}: send a larger one"
            raise Problem(409, "old-route", words)
        if (route.canary, route.digest) != (before.canary, before.digest):
            behind = self._canary, self._shadow
            breaker = Breaker()
            self._canary = self._behind(route, CANARY, breaker)
            self._shadow = self._behind(route, SHADOW, breaker)
            for one in behind:
                if one:
                    one.close()
            self._reaching = self._later(self._canary.reach()) if self._canary else None
        self.route = route

    async def reached(self) -> None:
        """Waits until there is a way to the canary, for a moment at most."""
        if self._reaching:
            await asyncio.wait({self._reaching}, timeout=REACH_SECONDS)

    async def close(self) -> None:
        """Looks for no way to the canary any more, and waits for no copy's answer. Once nobody asks."""
        for one in (self._canary, self._shadow):
            if one:
                one.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def ask(self, question: Question) -> None:
        """Takes a question; its `done` is called when it is answered.

        Raises:
            Problem: it cannot be answered; `done` is not called then.

        """
        route, canary, current = self.route, self._canary, self._residents.current
        if canary is None or current is None or question.given != STABLE or not _concerns(route, question):
            self._answering.submit(question)
            return
        fitting = self._answering.fitting(current)
        # What is wrong with a question must not look like a failure of the canary.
        if not fitting.fit([question]) and question.problem:
            raise question.problem
        theirs = self._theirs(question, route)
        if len(theirs) == len(question):
            self._later(self._ask_canary(question, canary, fitting), partial(_failed, question))
            return
        own = sorted(set(range(len(question))) - set(theirs))
        copy = self._copy(question, own, route)
        if theirs:
            # Each arm gets its rows, and their answers are put together.
            here, there = question.split(own, theirs)
            self._answering.submit(here)
            self._later(self._ask_canary(there, canary, fitting), partial(_failed, there))
        else:
            self._answering.submit(question)
        if copy and self._shadow:
            self._later(self._ask_shadow(copy, self._shadow, fitting))

    def _behind(self, route: Route, arm: str, breaker: Breaker) -> Behind | None:
        if route.canary is None:
            return None
        try:
            return Behind(route.canary, route.digest, arm, self._forwarding, breaker, self._stats)
        except ValueError as error:
            words = f"canary is no http://host:port: {error}"
            raise bad_request("bad-field", words) from error

    def _theirs(self, question: Question, route: Route) -> list[int]:
        """The rows that are the canary's."""
        policies, episodes = question.policies, question.episodes
        # Without episodes a request is one whole.
        lot = route.gateway is None and self._random.random() < route.weight
        if episodes is None and policies is None:
            return list(range(len(question))) if lot else []
        now = asyncio.get_running_loop().time()
        rows: list[int] = []
        for row in range(len(question)):
            arm = self._named(policies[row], route) if policies else ""
            if episodes is None:
                arm = arm or (CANARY if lot else STABLE)
            else:
                arm = self._arm(episodes[row], arm, route, now)
            if arm == CANARY:
                rows.append(row)
        return rows

    def _named(self, digest: str | None, route: Route) -> str:
        """The arm that has this policy; empty if none is named, or neither arm has it alone."""
        here, there = self._answering.resident(digest) is not None, digest == route.digest
        # Another image may be tried with the same policy: its name then says nothing of the arm.
        if digest is None or here == there:
            return ""
        return STABLE if here else CANARY

    def _arm(self, episode: str, named: str, route: Route, now: float) -> str:
        """The arm of an episode, which is remembered."""
        session = self._answering.sessions.of(episode, now)
        if named:
            session.salt, session.arm = route.salt, named
        elif not route.weight:
            return STABLE
        elif session.salt != route.salt or not session.arm:
            session.salt = route.salt
            # One that runs already stays where it is. Behind a gateway both arms choose, and choose the same.
            is_below = share(route.salt, episode) < route.weight
            chosen = not session.t and is_below != (route.gateway == "Canary")
            session.arm = CANARY if chosen else STABLE
        return session.arm

    def _copy(self, question: Question, own: list[int], route: Route) -> Question | None:
        """What the canary gets a copy of, if it may be asked as much."""
        if not route.mirror:
            return None
        if question.episodes is None:
            rows = own if self._random.random() < route.mirror else []
        else:
            # Chosen apart from those that are the canary's.
            salt = f"{route.salt}\0mirror"
            rows = [row for row in own if share(salt, question.episodes[row]) < route.mirror]
        if not rows or self._shadow is None:
            return None
        if self._shadow.full:
            self._stats.copies_dropped += 1
            return None
        return _copied(question, rows)

    def _later(
        self, work: Coroutine[Any, Any, None], failed: Callable[[], None] | None = None
    ) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        # The loop itself holds tasks only weakly.
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, failed))
        return task

    def _ended(self, failed: Callable[[], None] | None, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a question to the canary failed", exc_info=error)
            if failed:
                failed()

    async def _ask_canary(self, question: Question, canary: Behind, fitting: Fitting) -> None:
        if question.ids is None:
            # Whichever arm answers, the reward is for this id.
            self._answering.name(question)
        try:
            await canary.ask(question, fitting)
        except HopError as error:
            tally = self._stats.tally(CANARY, canary.digest or "", fitting.spec.action)
            tally.fallbacks[STABLE, error.reason] += len(question)
            is_due = canary.breaker.is_due(asyncio.get_running_loop().time())
            copy = _copied(question, list(range(len(question)))) if is_due else None
            self._answer_instead(question)
            if copy and self._shadow:
                self._later(self._ask_shadow(copy, self._shadow, fitting))
            return
        if question.episodes and question.steps:
            now = asyncio.get_running_loop().time()
            for episode, step in zip(question.episodes, question.steps, strict=True):
                self._answering.sessions.of(episode, now).t = step + 1
        if self._recording:
            self._recording.decided(question)
        question.end()

    async def _ask_shadow(self, copy: Question, shadow: Behind, fitting: Fitting) -> None:
        try:
            await shadow.ask(copy, fitting)
        except HopError as error:
            if not error.asked:
                self._stats.copies_dropped += 1

    def _answer_instead(self, question: Question) -> None:
        question.arms = [CANARY] * len(question)
        question.fallbacks = [STABLE] * len(question)
        try:
            self._answering.submit(question)
        except Problem as problem:
            question.problem = problem
            question.end()


def _copied(question: Question, rows: list[int]) -> Question:
    copy = question.part(rows)
    copy.ids = copy.policies = None
    return copy


def _failed(question: Question) -> None:
    question.problem = internal()
    question.end()


def _concerns(route: Route, question: Question) -> bool:
    """Whether any row may be the canary's: by a share, or because its episode runs there already."""
    return (
        route.weight > 0
        or route.mirror > 0
        or bool(route.digest and question.policies and route.digest in question.policies)
    )
