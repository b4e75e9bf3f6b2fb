"""Questions that arrive together are answered together: whatever one turn of the event loop has parsed.

Nothing waits for a timer. A question is refused at once when those before it would take too long.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from ratchet_inference.asking import Question
from ratchet_inference.chain import Batch, Outcome, Step, answer
from ratchet_inference.fitting import Fitting
from ratchet_inference.pace import Pace
from ratchet_inference.problems import Problem, bad_request, internal
from ratchet_inference.remembering import Remembering
from ratchet_inference.seams import Floats, Policy, Residents
from ratchet_inference.sessions import Session, Sessions
from ratchet_inference.stats import Stats, Tally

log = logging.getLogger(__name__)

# A row within a batch costs about so much less than a request of its own: `benchmarks/policy_server.py`.
ROWS_PER_REQUEST = 16


@dataclass(frozen=True, slots=True)
class Batching:
    """How questions are put together.

    Attributes:
        most: rows that a policy is asked at once.
        delay_seconds: that a question may have to wait; one that would wait longer is refused.
        fallback_seconds: since a question came in which another policy may stand in for one that fails; the
            oldest of those that are asked together counts.
        deterministic: for questions that do not say.
        remembered: answers to deterministic questions that are kept; 0 keeps none.

    """

    most: int = 256
    delay_seconds: float = 0.1
    fallback_seconds: float = 0.05
    deterministic: bool = False
    remembered: int = 0


class Answering:
    """Questions in, answers out, in the next turn of the loop."""

    def __init__(
        self,
        residents: Residents,
        sessions: Sessions,
        stats: Stats,
        settings: Batching,
        record: Callable[[Question], None] | None = None,
    ) -> None:
        self.sessions = sessions
        self._residents = residents
        self._stats = stats
        self._settings = settings
        self._record = record
        self._answer_rows = Remembering(settings.remembered).answer if settings.remembered else answer
        self._loop = asyncio.get_running_loop()
        self._fittings: dict[str, Fitting] = {}
        self._waiting: list[Question] = []
        self._units = 0
        self.pace = Pace()
        self._began = 0.0
        self._prefix = os.urandom(6).hex() + "-"
        self._number = count()

    def submit(self, question: Question) -> None:
        """Takes a question; its `done` is called in the next turn.

        Raises:
            Problem: there is no policy, or those that wait already would take too long.

        """
        if self._residents.current is None:
            raise Problem(503, "no-policy", "no policy is loaded yet: ask again later")
        units = 1 + len(question.observations) // ROWS_PER_REQUEST
        if not self._waiting:
            self._began = time.perf_counter()
            self._loop.call_soon(self._turn)
        elif self.pace.seconds(self._units + units) > self._settings.delay_seconds:
            self._stats.shed += 1
            raise Problem(503, "overloaded", "the server is at its limit: ask again after Retry-After")
        self._waiting.append(question)
        self._units += units

    def name(self, question: Question) -> None:
        """Gives each decision an id that no other has."""
        prefix, number = self._prefix, self._number
        if question.single:
            question.ids = [f"{prefix}{next(number):x}"]
        else:
            question.ids = [f"{prefix}{next(number):x}" for _ in question.observations]

    def fitting(self, policy: Policy) -> Fitting:
        """The spaces of a policy."""
        return self._step(None, policy).fitting

    def resident(self, digest: str | None) -> Policy | None:
        """The policy in memory that an episode may name as its own."""
        current, previous = self._residents.current, self._residents.previous
        if current and current.digest == digest:
            return current
        if previous and previous.digest == digest and digest != self.sessions.released:
            return previous
        return None

    def _turn(self) -> None:
        questions, units = self._waiting, self._units
        self._waiting, self._units = [], 0
        try:
            self._answer_all(questions)
        except Exception:
            log.exception("the server failed at a turn")
            for question in questions:
                question.problem = internal()
                _end(question)
        self.pace.measured(units, time.perf_counter() - self._began)

    def _answer_all(self, questions: list[Question]) -> None:
        current, previous = self._residents.current, self._residents.previous
        if current is None:
            for question in questions:
                question.problem = Problem(503, "no-policy", "no policy is loaded any more: ask again later")
                _end(question)
            return
        while questions:
            mine: list[Question] = []
            pinned: list[Question] = []
            later: list[Question] = []
            self._sort(questions, current, previous, mine, pinned, later)
            if mine:
                others = [self._step("previous", previous)] if previous else []
                self._answer_arms(mine, self._step(None, current), others)
            if pinned and previous:
                self._answer_arms(pinned, self._step(None, previous), [self._step("current", current)])
            questions = later

    def _sort(
        self,
        questions: list[Question],
        current: Policy,
        previous: Policy | None,
        mine: list[Question],
        pinned: list[Question],
        later: list[Question],
    ) -> None:
        """Gives each observation to the policy of its episode; one step of a recurrent episode at a time."""
        if previous is None and not current.recurrent_size:
            mine += questions
            return
        now = self._loop.time()
        seen: set[str] = set()
        for question in questions:
            episodes = question.episodes
            if episodes is not None:
                if not seen.isdisjoint(episodes):
                    later.append(question)
                    continue
                if current.recurrent_size or (previous and previous.recurrent_size):
                    seen.update(episodes)
            if previous is None or (episodes is None and question.policies is None):
                mine.append(question)
                continue
            theirs: list[int] = []
            own: list[int] = []
            for row in range(len(question)):
                policy = self.resident(question.policies[row]) if question.policies else None
                if policy:
                    pinned_to = policy.digest
                else:
                    pinned_to = self.sessions.of(episodes[row], now).digest if episodes else ""
                (theirs if pinned_to == previous.digest else own).append(row)
            if not theirs:
                mine.append(question)
            elif not own:
                pinned.append(question)
            else:
                one, other = question.split(own, theirs)
                mine.append(one)
                pinned.append(other)

    def _step(self, name: str | None, policy: Policy) -> Step:
        fitting = self._fittings.get(policy.digest)
        if fitting is None:
            if len(self._fittings) > 1:
                self._fittings.clear()
            fitting = self._fittings[policy.digest] = Fitting(policy.spec)
        return Step(name, policy, fitting)

    def _answer_arms(self, questions: list[Question], step: Step, others: Sequence[Step]) -> None:
        """What another server or a route sent on is of the arm that it says, the rest is this one's own."""
        arms = {question.given for question in questions}
        if len(arms) == 1:
            self._answer(questions, arms.pop(), step, others)
            return
        for arm in sorted(arms):
            self._answer([question for question in questions if question.given == arm], arm, step, others)

    def _answer(self, questions: list[Question], arm: str, step: Step, others: Sequence[Step]) -> None:
        """Answers questions with one policy and tells each, also when that fails."""
        policy = step.policy
        tally = self._stats.tally(arm, policy.digest, policy.spec.action)
        before = tally.requests
        try:
            self._decide(questions, arm, step, others, tally)
        except Exception:
            log.exception("the server failed at questions", extra={"fields": {"digest": policy.digest}})
            is_counted, now = tally.requests > before, time.perf_counter()
            for question in questions:
                if question.problem:
                    continue
                question.problem = internal()
                tally.errors["internal"] += len(question)
                if is_counted:
                    continue
                tally.predictions += len(question)
                if not question.arms:
                    tally.answered(question.received, now)
        for question in questions:
            _end(question)

    def _decide(
        self, questions: list[Question], arm: str, step: Step, others: Sequence[Step], tally: Tally
    ) -> None:
        policy = step.policy
        if policy.recurrent_size:
            for question in questions:
                if question.episodes is None:
                    words = "this policy remembers: send the episode that each observation belongs to"
                    question.problem = bad_request("no-episode", words)
        # What went through the dispatch of a route fits already.
        asked = [question for question in questions if question.array is not None]
        asked += step.fitting.fit([q for q in questions if q.array is None and q.problem is None])
        if asked:
            sessions = self._sessions(asked, policy)
            batch = self._batch(asked, sessions, policy)
            until = min([question.received for question in asked]) + self._settings.fallback_seconds
            outcome = self._answer_rows(step, others, batch, tally, self._settings.most, until)
            if policy.recurrent_size and outcome.states is not None and sessions:
                for session, state in zip(sessions, outcome.states, strict=True):
                    if session:
                        session.state = state
            tally.predictions += len(batch.observations)
            tally.actions.add(outcome.actions, int(np.count_nonzero(batch.deterministic)))
            now = time.perf_counter()
            for question in asked:
                # Those of another arm are counted there.
                if not question.arms:
                    tally.answered(question.received, now)
            self._give(asked, arm, outcome)
            if self._record is not None:
                for question in asked:
                    self._record(question)

    def _sessions(self, asked: list[Question], policy: Policy) -> list[Session | None]:
        """The session of each row, pinned to the policy that answers; empty where no row has an episode."""
        if all(question.episodes is None for question in asked):
            return []
        now = self._loop.time()
        found: list[Session | None] = []
        for question in asked:
            if question.episodes is None:
                found += [None] * len(question)
                continue
            question.steps = []
            for episode in question.episodes:
                session = self.sessions.of(episode, now)
                if session.digest != policy.digest:
                    session.digest = policy.digest
                    session.state = None
                if policy.recurrent_size and session.state is None:
                    # Whoever reads the steps sees where the memory began.
                    session.t = 0
                question.steps.append(session.t)
                session.t += 1
                found.append(session)
        return found

    def _batch(self, asked: list[Question], sessions: list[Session | None], policy: Policy) -> Batch:
        arrays = [question.array for question in asked if question.array is not None]
        observations = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        rows = len(observations)
        masks = None
        # `fill` takes a tenth of the time of np.full.
        deterministic, temperature = np.empty(rows, np.bool_), np.empty(rows, np.float32)
        deterministic.fill(self._settings.deterministic)
        temperature.fill(1.0)
        seeds: list[int | None] = [None] * rows
        first = 0
        for question in asked:
            last = first + len(question.observations)
            if question.mask_rows is not None:
                if masks is None:
                    masks = np.ones((rows, policy.spec.action.outputs), np.bool_)
                masks[first:last] = question.mask_rows
            if question.deterministic is not None:
                deterministic[first:last] = question.deterministic
            if question.temperature != 1.0:
                temperature[first:last] = question.temperature
            if question.seeds is not None:
                seeds[first:last] = question.seeds
            first = last
        states: Floats | None = None
        if policy.recurrent_size:
            states = np.zeros((rows, policy.recurrent_size), np.float32)
            for row, session in enumerate(sessions):
                if session and session.state is not None:
                    states[row] = session.state
        return Batch(observations, masks, deterministic, temperature, seeds, states)

    def _give(self, asked: list[Question], arm: str, outcome: Outcome) -> None:
        """Puts the columns of the outcome into the questions they belong to."""
        actions = outcome.actions.tolist()
        first = 0
        for question in asked:
            rows = len(question.observations)
            last = first + rows
            question.actions = actions[first:last]
            question.log_probabilities = outcome.log_probabilities[first:last]
            if outcome.values is not None:
                question.values = outcome.values[first:last]
            question.digests = outcome.digests[first:last]
            steps = outcome.steps[first:last]
            if question.arms:
                before = question.fallbacks
                question.fallbacks = [step or one for step, one in zip(steps, before, strict=True)]
            else:
                question.arms = [arm] * rows
                question.fallbacks = steps
            if question.ids is None:
                self.name(question)
            first = last


def _end(question: Question) -> None:
    """Tells whoever asked; that this fails for one must not keep the answers of the others."""
    try:
        question.end()
    except Exception:
        log.exception("an answer could not be given")
