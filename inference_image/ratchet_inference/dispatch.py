"""Which arm answers: this server, or the canary behind it. An episode keeps the arm of its first step.

A question that names the policy that its episode runs on goes there, whatever the weight and whichever server
it reaches; one that names none, or one that is gone, goes where the hash of its episode says.
The canary's answer is checked like a policy's own; when it is late, wrong or missing, this server answers.
`arm` in an answer is the one that was chosen, `digest` and `fallback` say who answered in fact.
"""

import asyncio
import logging
import random
import ssl
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from time import perf_counter
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ratchet.api.v1alpha1.serverstats import Route
from ratchet_inference.asking import Question, read_json
from ratchet_inference.batching import CANARY, STABLE, Answering
from ratchet_inference.breaker import Breaker
from ratchet_inference.fitting import Fitting
from ratchet_inference.hop import BUSY, Hop, HopError
from ratchet_inference.problems import Problem, bad_request, internal
from ratchet_inference.recording import Recording
from ratchet_inference.seams import Residents
from ratchet_inference.stats import Stats

log = logging.getLogger(__name__)


def share(salt: str, episode: str) -> float:
    """Where an episode lies in [0, 1). Below the weight it is the canary's, so that a ramp only adds."""
    digest = blake2b(f"{salt}\0{episode}".encode(errors="surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Forwarding:
    """How the canary is asked: seconds for its answer, the token it wants, questions at once, and TLS."""

    seconds: float = 0.03
    token: str | None = None
    most: int = 128
    tls: ssl.SSLContext | None = None


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
        self.breaker = Breaker()
        self._hop: Hop | None = None
        self._answering = answering
        self._residents = residents
        self._stats = stats
        self._recording = recording
        self._forwarding = forwarding
        self._random = random.Random()
        self._tasks: set[asyncio.Task[None]] = set()

    def set_route(self, route: Route) -> None:
        """Takes a new route at once; questions on their way end as they began.

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
        if route.canary != before.canary:
            hop, self._hop = self._hop, self._way_to(route.canary)
            if hop:
                hop.close()
        if route.canary != before.canary or route.digest != before.digest:
            self.breaker = Breaker()
        self.route = route

    def ask(self, question: Question) -> None:
        """Takes a question; its `done` is called when it is answered.

        Raises:
            Problem: it cannot be answered; `done` is not called then.

        """
        route = self.route
        current = self._residents.current
        if self._hop is None or current is None or question.canary or not _concerns(route, question):
            self._answering.submit(question)
            return
        fitting = self._answering.fitting(current)
        # What is wrong with a question must not look like a failure of the canary.
        if not fitting.fit([question]) and question.problem:
            raise question.problem
        theirs = self._theirs(question, route)
        if not theirs:
            self._answering.submit(question)
        elif len(theirs) == len(question):
            self._forward(question, fitting)
        else:
            self._split(question, theirs, fitting)

    def _way_to(self, canary: str | None) -> Hop | None:
        forwarding = self._forwarding
        try:
            return Hop(canary, forwarding.token, forwarding.most, forwarding.tls) if canary else None
        except ValueError as error:
            words = f"canary is no http://host:port: {error}"
            raise bad_request("bad-field", words) from error

    def _theirs(self, question: Question, route: Route) -> list[int]:
        """The rows that are the canary's."""
        policies, episodes = question.policies, question.episodes
        if episodes is None and policies is None:
            return list(range(len(question))) if self._random.random() < route.weight else []
        now = asyncio.get_running_loop().time()
        # Without episodes a request is one whole.
        lot = self._random.random() < route.weight
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
        """The arm that has this policy; empty if none has, or none is named."""
        if digest is None:
            return ""
        if self._answering.resident(digest):
            return STABLE
        return CANARY if digest == route.digest else ""

    def _arm(self, episode: str, named: str, route: Route, now: float) -> str:
        """The arm of an episode, which is remembered."""
        session = self._answering.sessions.of(episode, now)
        if named:
            session.salt, session.arm = route.salt, named
        elif not route.weight:
            return STABLE
        elif session.salt != route.salt or not session.arm:
            session.salt = route.salt
            # One that runs already stays where it is.
            chosen = not session.t and share(route.salt, episode) < route.weight
            session.arm = CANARY if chosen else STABLE
        return session.arm

    def _split(self, question: Question, theirs: list[int], fitting: Fitting) -> None:
        """Asks both arms, each for its rows, and puts their answers together."""
        own = sorted(set(range(len(question))) - set(theirs))
        here, there = question.split(own, theirs)
        self._answering.submit(here)
        self._forward(there, fitting)

    def _forward(self, question: Question, fitting: Fitting) -> None:
        task = asyncio.get_running_loop().create_task(self._ask_canary(question, fitting))
        # The loop itself holds tasks only weakly.
        self._tasks.add(task)
        task.add_done_callback(partial(self._asked, question))

    def _asked(self, question: Question, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a question to the canary failed", exc_info=error)
            question.problem = internal()
            question.end()

    async def _ask_canary(self, question: Question, fitting: Fitting) -> None:
        route, hop, breaker = self.route, self._hop, self.breaker
        space = fitting.spec.action
        rows = len(question)
        loop = asyncio.get_running_loop()
        try:
            if hop is None:
                raise HopError("no-route")
            if not breaker.allows(loop.time()):
                raise HopError("breaker-open")
            if question.ids is None:
                # Whichever arm answers, the reward is for this id.
                self._answering.name(question)
            began = perf_counter()
            try:
                body = await hop.ask(question.body(), self._forwarding.seconds)
                _read(question, body, fitting, route.digest)
            except HopError as error:
                # That this server asks no more at once says nothing of the canary.
                if error.reason != BUSY:
                    breaker.failed(loop.time())
                    tally = self._stats.tally(CANARY, route.digest or "", space)
                    tally.errors[error.reason] += rows
                    tally.answered(perf_counter() - began)
                raise
        except HopError as error:
            self._stats.tally(CANARY, route.digest or "", space).fallbacks[STABLE, error.reason] += rows
            self._answer_instead(question)
            return
        breaker.succeeded()
        tally = self._stats.tally(CANARY, question.digests[0], space)
        tally.predictions += rows
        tally.actions.add(np.array(question.actions))
        tally.answered(perf_counter() - began)
        if question.episodes and question.steps:
            for episode, step in zip(question.episodes, question.steps, strict=True):
                self._answering.sessions.of(episode, loop.time()).t = step + 1
        if self._recording:
            self._recording.decided(question)
        question.end()

    def _answer_instead(self, question: Question) -> None:
        question.arms = [CANARY] * len(question)
        question.fallbacks = [STABLE] * len(question)
        try:
            self._answering.submit(question)
        except Problem as problem:
            question.problem = problem
            question.end()


def _concerns(route: Route, question: Question) -> bool:
    """Whether any row may be the canary's: by the weight, or because its episode runs there already."""
    return route.weight > 0 or bool(route.digest and question.policies and route.digest in question.policies)


def _read(question: Question, body: bytes, fitting: Fitting, digest: str | None) -> None:
    """Fills a question from another server's answer.

    Raises:
        HopError: the answer is not one, or not valid under the masks, or a fallback of the other side.

    """
    rows, space = len(question), fitting.spec.action
    nothing: list[Any] = [None] * rows
    try:
        answer = cast("dict[str, Any]", read_json(body))
        if question.single:
            names = ("action", "logProbability", "digest", "fallback", "value", "t")
            columns = [[answer[name]] for name in names]
        else:
            names = ("actions", "logProbabilities", "digests", "fallbacks", "values", "ts")
            columns = [nothing if answer[name] is None else answer[name] for name in names]
        actions, log_probabilities, digests, fallbacks, values, steps = columns
        array = _numbers(actions, (rows, *space.shape), whole=np.dtype(space.dtype).kind != "f")
        if not np.isfinite(_numbers(log_probabilities, (rows,))).all():
            raise HopError("canary-nan")
        known_values, known_steps = values != nothing, steps != nothing
        if known_values:
            _numbers([0.0 if one is None else one for one in values], (rows,))
        if known_steps and not (_numbers(steps, (rows,), whole=True) >= 0).all():
            raise HopError("canary-invalid")
        if not (_each(digests, rows, str) and _each(fallbacks, rows, str | None)):
            raise HopError("canary-invalid")
        if fallbacks != nothing:
            raise HopError("canary-fallback")
        if digest is not None and any(one != digest for one in digests):
            raise HopError("canary-digest")
        inside, allowed = fitting.valid(array, question.mask_rows)
    except HopError:
        raise
    except Exception as error:
        # Whatever another server sends, the client is answered.
        raise HopError("canary-invalid") from error
    if not allowed.all():
        raise HopError("canary-mask-violation" if inside.all() else "canary-invalid")
    question.actions = actions
    question.log_probabilities = log_probabilities
    question.digests = digests
    question.fallbacks = nothing
    question.arms = [CANARY] * rows
    question.values = values if known_values else None
    question.steps = steps if known_steps else None


def _numbers(column: Any, shape: tuple[int, ...], *, whole: bool = False) -> NDArray[Any]:
    """A column of JSON numbers, which true and false are none of."""
    found = np.array(column, object)
    kinds: set[type] = {int} if whole else {int, float}
    if found.shape != shape or not {type(x) for x in found.ravel()} <= kinds:
        raise HopError("canary-invalid")
    return found.astype(np.int64 if whole else np.float64)


def _each(column: Any, rows: int, kind: Any) -> bool:
    if not isinstance(column, list):
        return False
    entries = cast("list[Any]", column)
    return len(entries) == rows and all(isinstance(entry, kind) for entry in entries)
