"""The rollout machine over random histories of a small cluster; the operator may die between any two writes.

What must hold at each write, not only in the end: never traffic to what is not ready, nothing scaled down
before it is seen to be left, capacity for all that is routed, weights that only grow, episodes that stay on
their arm, a pod or the operator's door for whoever asks. And in a fair world each history ends.
"""

import contextlib
import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from ratchet_operator.rollout.machine import step
from ratchet_operator.rollout.values import (
    ArmSeen,
    Command,
    GuardPolicy,
    Rest,
    Rollout,
    Rules,
    Seen,
    Split,
    Stage,
    Wanted,
)

from ratchet.evidence import Decision, Verdict, source_down

DIGESTS = ("good", "better", "worse", "broken")
NEVER_READY, WORSE = {"broken"}, {"worse"}
DEADLINE, BAKE = 60.0, 20.0
EPISODE_SECONDS = 15.0
ENOUGH, TELLING = 30, 60
SLEEPY = 20.0
ENDS = {"Serving", "Quarantined", "AttemptsExhausted"}
RULES = {
    "canary": Rules(
        stages=(Stage(10, seconds=5), Stage(50, seconds=5)),
        bake_seconds=BAKE,
        deadline_seconds=DEADLINE,
        cooldown_seconds=10,
    ),
    "approval": Rules(
        stages=(Stage(20, mirrored=True), Stage(25, approval=True)),
        bake_seconds=BAKE,
        deadline_seconds=DEADLINE,
        policies={"errors": GuardPolicy(on_not_enough="RollBack", on_source_down="Advance")},
    ),
    "all at once": Rules(bake_seconds=BAKE, deadline_seconds=DEADLINE, cooldown_seconds=0),
    "sleepy": Rules(
        stages=(Stage(50, seconds=5),), bake_seconds=BAKE, deadline_seconds=DEADLINE, sleep_seconds=SLEEPY
    ),
}


class OperatorDiedError(Exception):
    """Between two writes."""


@dataclass
class Arm:
    """A Deployment: pods asked for, and the time at which each one is ready."""

    replicas: int = 0
    ready_at: list[datetime] = field(default_factory=list)

    def ready(self, now: datetime) -> int:
        return sum(at <= now for at in self.ready_at)


@dataclass
class Episode:
    arm: str
    begun: datetime
    ends: datetime


@lru_cache(maxsize=64)
def _read(ledger: str) -> Rollout:
    return Rollout.model_validate_json(ledger)


class World:
    """Deployments that get ready late, pods that follow a split late, episodes, guards and a ledger."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.ledger = Rollout().model_dump_json()
        self.arms: dict[str, Arm] = {}
        self.written = self.followed = Split({})
        self.follows_at = self.now
        self.episodes: list[Episode] = []
        self.samples: Counter[str] = Counter()
        self.trial: tuple[str, int] | None = None
        self.source: str | None = "good"
        self.demand, self.is_busy, self.is_blind, self.start_seconds, self.lag = 4, True, False, 3.0, 2.0
        self.command: Command | None = None
        self.last_weight = 0
        self.door = self.is_found = False
        self.asked = self.knocked = self.now

    @property
    def state(self) -> Rollout:
        return _read(self.ledger)

    def ready(self, digest: str) -> int:
        return self.arms[digest].ready(self.now) if digest in self.arms else 0

    def needs(self, weight: int) -> int:
        return max(1, math.ceil(self.demand * weight / 100))

    def tick(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += timedelta(seconds=1)
            if self.now >= self.follows_at:
                self._follow()
            self.episodes = [episode for episode in self.episodes if episode.ends > self.now]
            self.is_found = bool(self.ready(self.state.stable or ""))
            if self.is_busy:
                self._begin_episodes()

    def _follow(self) -> None:
        self.followed = self.written
        for episode in self.episodes:
            if episode.arm in self.followed.evicted:
                self._moved(episode)
        self.episodes = [e for e in self.episodes if e.arm not in self.followed.evicted]

    def _moved(self, episode: Episode) -> None:
        """An episode leaves its arm only for a policy that failed, or after all the time it could ask for."""
        past = self.state.history[-1:]
        trial = self.state.trial
        failed = {p.digest for p in past if p.outcome in ("Failed", "TimedOut")}
        if trial is not None and trial.outcome in ("Failed", "TimedOut"):
            failed.add(trial.digest)
        assert episode.arm in failed or self.now - episode.begun > timedelta(seconds=DEADLINE)

    def _begin_episodes(self) -> None:
        self.asked = self.now
        if self.door and not self.ready(self.state.stable or ""):
            self.knocked = self.now
        for digest, weight in self.followed.weights.items():
            if self.ready(digest):
                ends = self.now + timedelta(seconds=EPISODE_SECONDS)
                self.episodes.append(Episode(digest, self.now, ends))
                self.samples[digest] += max(1, weight // 5)
        if self.followed.mirrored is not None:
            self.samples[self.followed.mirrored[0]] += 4

    def _decisions(self, state: Rollout) -> tuple[Decision, ...]:
        trial = state.trial
        if trial is None:
            return ()
        attempt = (trial.digest, state.attempts.get(trial.digest, 0))
        if attempt != self.trial:
            self.trial, self.samples = attempt, Counter()
        n = self.samples[trial.digest]
        if self.is_blind:
            return (source_down("errors", "nobody answers"),)
        verdict = Verdict.PASS if n >= ENOUGH else Verdict.NOT_ENOUGH_EVIDENCE
        if trial.digest in WORSE:
            verdict = Verdict.FAIL if n >= TELLING else Verdict.NOT_ENOUGH_EVIDENCE
        return (Decision("errors", verdict, "as simulated", canary_n=n),)

    def seen(self, state: Rollout) -> Seen:
        agreed = self.now >= self.follows_at and self.followed == self.written
        traffic = Counter(episode.arm for episode in self.episodes)
        return Seen(
            source=self.source,
            arms={digest: ArmSeen(arm.replicas, arm.ready(self.now)) for digest, arm in self.arms.items()},
            demand=self.demand,
            routed=self.written,
            split=self.followed if agreed else None,
            traffic=traffic if agreed else None,
            decisions=self._decisions(state),
            command=self.command,
            rest=Rest(
                quiet=(self.now - self.asked).total_seconds() if not self.episodes else None,
                door=self.door,
                asked=(self.now - self.knocked).total_seconds() < 10,
                found=self.is_found,
            ),
        )

    def operate(self, writes: int | None = None) -> Wanted:
        """One step of the operator, which may die after so many writes."""
        before = self.state
        wanted = step(self.rules, before, self.seen(before), self.now)
        left = iter(range(writes)) if writes is not None else None

        def write() -> None:
            if left is not None and next(left, None) is None:
                raise OperatorDiedError

        if wanted.state != before:
            write()
            self._check_weight(before, wanted.state)
            self.ledger = wanted.state.model_dump_json()
        if wanted.state.nap is not None and not self.door:
            write()
            self.door = True
        for digest, replicas in wanted.replicas.items():
            if replicas != self.arms.get(digest, Arm()).replicas:
                write()
                self._scale(digest, replicas)
        if wanted.split != self.written:
            write()
            self._route(wanted.split)
        if wanted.state.nap is None and self.door:
            write()
            assert self.is_found or self._is_late(before), "the door went before a pod was found"
            self.door = False
        return wanted

    def _is_late(self, state: Rollout) -> bool:
        """Whether pods had their time to wake, or died after it."""
        return state.nap is None or self.now - datetime.fromisoformat(state.nap.since) > timedelta(
            seconds=DEADLINE
        )

    def _check_weight(self, before: Rollout, after: Rollout) -> None:
        one, other = before.trial, after.trial
        if one is None or other is None or one.digest != other.digest:
            assert other is None or other.weight == 0
            assert other is None or other.digest not in after.quarantined
            return
        if other.phase == "RollBack":
            assert other.weight in (one.weight, 0)
        else:
            assert other.weight >= one.weight

    def _scale(self, digest: str, replicas: int) -> None:
        arm = self.arms.setdefault(digest, Arm())
        if replicas < arm.replicas:
            weight = max(split.weights.get(digest, 0) for split in (self.written, self.followed))
            if digest == self.state.stable and not replicas:
                assert self.door, "asleep without a door"
                assert not self.is_busy or self.now - self.asked >= timedelta(seconds=SLEEPY)
                weight = 0
            assert replicas >= (self.needs(weight) if weight else 0), "scaled below what is routed there"
            if not replicas:
                assert not weight, "scaled down before traffic had left"
                assert not any(episode.arm == digest for episode in self.episodes), "episodes are still there"
        at = self.now + timedelta(seconds=self.start_seconds)
        at = datetime.max.replace(tzinfo=UTC) if digest in NEVER_READY else at
        arm.ready_at = [*sorted(arm.ready_at)[:replicas], *([at] * (replicas - len(arm.ready_at)))]
        arm.replicas = replicas
        if not replicas:
            del self.arms[digest]

    def _route(self, split: Split) -> None:
        stable = self.state.stable
        for digest, weight in split.weights.items():
            if weight > self.written.weights.get(digest, 0):
                needed = 1 if digest == stable else self.needs(weight)
                assert self.ready(digest) >= needed, "traffic to what is not ready"
            assert self.arms[digest].replicas >= self.needs(weight), "capacity below demand"
        self.written, self.follows_at = split, self.now + timedelta(seconds=self.lag)


class Histories(RuleBasedStateMachine):
    rules_name = "canary"

    def __init__(self) -> None:
        super().__init__()
        self.world = World(RULES[self.rules_name])
        self.commands = 0

    @rule(seconds=st.sampled_from([1, 2, 5, 20, 90]))
    def time_passes(self, seconds: int):
        self.world.tick(seconds)

    @rule()
    def the_operator_steps(self):
        self.world.operate()

    @rule(steps=st.integers(2, 20))
    def the_operator_steps_each_second(self, steps: int):
        for _ in range(steps):
            self.world.operate()
            self.world.tick(1)

    @rule(writes=st.integers(0, 4))
    def the_operator_dies_between_two_writes(self, writes: int):
        with contextlib.suppress(OperatorDiedError):
            self.world.operate(writes)

    @rule(source=st.sampled_from([*DIGESTS, None]))
    def the_source_changes(self, source: str | None):
        self.world.source = source

    @rule(digest=st.sampled_from(DIGESTS), is_all=st.booleans())
    def pods_die(self, digest: str, is_all: bool):
        arm = self.world.arms.get(digest)
        if arm is not None and arm.ready_at:
            back = self.world.now + timedelta(seconds=self.world.start_seconds)
            if digest not in NEVER_READY:
                arm.ready_at = [back] * (len(arm.ready_at) if is_all else 1) + arm.ready_at[1:] * (not is_all)

    @rule(is_busy=st.booleans(), demand=st.integers(1, 12))
    def traffic_changes(self, is_busy: bool, demand: int):
        self.world.is_busy, self.world.demand = is_busy, demand

    @rule(is_blind=st.booleans())
    def evidence_comes_or_goes(self, is_blind: bool):
        self.world.is_blind = is_blind

    @rule(lag=st.sampled_from([0.0, 2.0, 30.0]), start=st.sampled_from([1.0, 5.0, 90.0]))
    def the_cluster_is_slow(self, lag: float, start: float):
        self.world.lag, self.world.start_seconds = lag, start

    @rule(verb=st.sampled_from(["promote", "pause", "resume", "abort", "undo", "retry"]))
    def somebody_commands(self, verb: str):
        self.commands += 1
        self.world.command = Command(str(self.commands), verb)  # pyright: ignore[reportArgumentType]

    @invariant()
    def stable_keeps_its_capacity_while_another_is_tried(self):
        state = self.world.state
        if state.trial is not None and state.stable in self.world.arms:
            assert self.world.arms[state.stable].replicas >= 1

    @invariant()
    def nothing_in_quarantine_is_on_trial(self):
        state = self.world.state
        assert state.trial is None or state.trial.digest not in state.quarantined

    @precondition(lambda self: self.world.source is not None)
    @rule()
    def a_fair_world_comes_to_an_end(self):
        world = self.world
        world.is_busy, world.is_blind, world.lag, world.start_seconds = True, False, 2.0, 4.0
        for _ in range(1_200):
            trial = world.state.trial
            if trial is not None and world.now.second % 20 == 0:
                self.somebody_commands("resume")
            reason = world.operate().reason
            world.tick(1)
            # It is busy here, so a nap that began before comes to its end as well.
            if reason in ENDS and set(world.arms) <= {world.state.stable} and world.state.nap is None:
                break
        state, source = world.state, world.source
        served = state.pin.digest if state.pin and state.pin.over == source else source
        if state.trial is not None:
            assert state.stable is None
            assert served in NEVER_READY
            return
        assert state.stable == served or served in state.quarantined or served in NEVER_READY
        assert state.stable is None or (world.followed.weights, set(world.arms)) == (
            {state.stable: 100},
            {state.stable},
        )
        assert world.operate().state == state


class ApprovalHistories(Histories):
    rules_name = "approval"


class AllAtOnceHistories(Histories):
    rules_name = "all at once"


class SleepyHistories(Histories):
    rules_name = "sleepy"

    @rule()
    def a_still_world_falls_asleep(self):
        world = self.world
        world.is_busy, world.lag, world.start_seconds = False, 2.0, 4.0
        world.source = world.state.stable or world.source
        for _ in range(400):
            world.operate()
            world.tick(1)
        state = world.state
        if state.trial is None and state.stable is not None and state.pin is None:
            assert state.nap is not None
            assert (state.nap.phase, world.arms) == ("Asleep", {})


TestCanary = Histories.TestCase
TestApproval = ApprovalHistories.TestCase
TestAllAtOnce = AllAtOnceHistories.TestCase
TestSleepy = SleepyHistories.TestCase
TestCanary.settings = TestApproval.settings = TestAllAtOnce.settings = TestSleepy.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
