"""The worker's loop: take a ticket, act by the newest policy, deliver what came of it."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ratchet.api.v1alpha1 import TrainingConfig
from ratchet.experience import Fragment, Header, Ticket, Weights, WorkerChannel, encode
from ratchet.policies import Actor, PolicySpec
from ratchet.policies.evaluated import MOST_OUTPUTS
from ratchet.weights import decode
from ratchet_rollout.actor import Player
from ratchet_rollout.environments import Environments, make
from ratchet_rollout.errors import ConfigError, Interrupted
from ratchet_rollout.evaluation import evaluate

logger = logging.getLogger(__name__)

REPORT_SECONDS = 30.0


@dataclass
class Shutdown:
    """A request to end: what is being made may be finished, but only for `grace` seconds."""

    grace: float = 5.0
    clock: Callable[[], float] = time.monotonic
    _requested_at: float | None = None

    def request(self) -> None:
        """Safe to call from a signal handler."""
        if self._requested_at is None:
            self._requested_at = self.clock()

    @property
    def requested(self) -> bool:
        """Nothing new should be begun."""
        return self._requested_at is not None

    def check(self) -> None:
        """Raises Interrupted when grace is over."""
        if self._requested_at is not None and self.clock() - self._requested_at >= self.grace:
            raise Interrupted

    def sleep(self, seconds: float) -> None:
        """Sleeps between two tries to reach Redis; raises Interrupted instead when asked to end."""
        until = self.clock() + seconds
        while (left := until - self.clock()) > 0:
            if self.requested:
                raise Interrupted
            time.sleep(min(left, 0.2))


@dataclass(frozen=True)
class Identity:
    """Which worker this is; `name` is its pod's."""

    pool: str
    name: str
    incarnation: str = field(default_factory=lambda: token_hex(8))

    @property
    def worker(self) -> str:
        """As fragments name it."""
        return f"{self.pool}/{self.name}"


@dataclass
class Tally:
    """What was done since the last report."""

    since: float
    fragments: int = 0
    discarded: int = 0
    evaluations: int = 0
    steps: int = 0
    waited: float = 0.0
    returns: list[float] = field(default_factory=list[float])

    def report(self, now: float) -> dict[str, Any]:
        """The fields of a log line."""
        seconds = max(now - self.since, 1e-9)
        return {
            "fragments": self.fragments,
            "discarded": self.discarded,
            "evaluations": self.evaluations,
            "stepsPerSecond": round(self.steps / seconds, 1),
            "waitingFraction": round(self.waited / seconds, 3),
            "meanReturn": round(float(np.mean(self.returns)), 3) if self.returns else None,
        }


class Worker:
    """One process of a pool.

    Raises:
        ConfigError: the environment can't be built, from here and from `run`.

    """

    def __init__(
        self,
        config: TrainingConfig,
        identity: Identity,
        channel: WorkerChannel,
        shutdown: Shutdown,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._identity = identity
        self._channel = channel
        self._shutdown = shutdown
        self._clock = clock
        self._environments = make(config.environment, config.environment.vector_size)
        spec = self._environments.spec
        network = config.algorithm.network
        self._policy_spec = PolicySpec(
            observation=spec.observation,
            action=spec.action,
            hidden=tuple(network.hidden),
            activation=network.activation,
            normalizes_observations=config.algorithm.ppo.normalize_observations,
        )
        self._player: Player | None = None
        self._evaluated: dict[int, Environments] = {}
        self._held: tuple[Weights, Actor] | None = None
        self._sequence = 0
        self._tally = Tally(clock())

    def run(self) -> None:
        """Works until asked to end.

        Raises:
            RedisUnreachable: for longer than the channel's patience.
            Interrupted: asked to end, and what was being made is abandoned.

        """
        self._agree_on_spaces()
        waiting_since = self._clock()
        while not self._shutdown.requested:
            ticket = self._channel.take(1.0)
            self._report()
            if ticket is None:
                continue
            begun = self._clock()
            actor = self._newest_actor(ticket)
            if actor is not None:
                self._answer(ticket, actor, begun, begun - waiting_since)
            waiting_since = self._clock()

    def close(self) -> None:
        """Frees what the environments hold."""
        for environments in (self._environments, *self._evaluated.values()):
            environments.close()

    def _agree_on_spaces(self) -> None:
        own = self._environments.spec
        agreed = self._channel.offer_spec(own)
        if (agreed.observation, agreed.action) != (own.observation, own.action):
            raise ConfigError(
                f"worker {self._identity.worker} built an environment of other spaces ({own.observation}; "
                f"{own.action}) than an earlier worker of this job ({agreed.observation}; {agreed.action}): "
                "give every pool of the job the same image"
            )

    def _newest_actor(self, ticket: Ticket) -> Actor | None:
        """The newest policy, or None when the ticket's learner is gone and nobody would read the answer."""
        weights = self._channel.weights(self._held[0] if self._held else None)
        if weights is not None:
            try:
                self._held = weights, Actor(self._policy_spec, decode(weights.blob))
            except ValueError as error:
                raise ConfigError(
                    f"the trainer's policy does not fit this worker ({error}): run trainer and workers of "
                    "one release, and the same environment in every pool"
                ) from error
        if self._held is None or self._held[0].epoch != ticket.epoch:
            logger.info("ticket of another epoch is left", extra={"fields": {"epoch": ticket.epoch}})
            return None
        return self._held[1]

    def _answer(self, ticket: Ticket, actor: Actor, begun: float, waited: float) -> None:
        assert self._held is not None  # noqa: S101 - for the type checker
        version = self._held[0].version
        kind: Literal["rollout", "evaluation"]
        if ticket.kind == "rollout":
            kind, columns = "rollout", self._play(ticket, actor)
            steps = int(np.count_nonzero(columns["valid"]))
        else:
            kind, columns, steps = "evaluation", self._evaluate(ticket, actor), 0
        self._sequence += 1
        header = Header(
            kind=kind,
            worker=self._identity.worker,
            incarnation=self._identity.incarnation,
            sequence=self._sequence,
            ticket=ticket.id,
            version=version,
            n=steps,
            seconds=self._clock() - begun,
            waited=waited,
        )
        delivered = self._channel.deliver(ticket.epoch, encode(Fragment(header, columns)))
        self._count(header, delivered, columns)

    def _play(self, ticket: Ticket, actor: Actor) -> dict[str, NDArray[Any]]:
        if self._player is None:
            # No two workers get the same ticket, and a restarted one does not get its first again; with one
            # worker in mode Sync a job repeats itself exactly.
            seed = np.random.SeedSequence([self._config.algorithm.seed, ticket.epoch, ticket.id])
            self._player = Player(self._environments, self._config.algorithm.ppo.rollout_steps, seed)
        return self._player.play(actor, self._shutdown.check)

    def _evaluate(self, ticket: Ticket, actor: Actor) -> dict[str, NDArray[Any]]:
        evaluation = self._config.evaluation
        episodes = ticket.episodes or evaluation.episodes
        size = min(episodes, self._config.environment.vector_size)
        if size not in self._evaluated:
            self._evaluated[size] = make(self._config.environment, size)
        seed = int(np.random.SeedSequence().generate_state(1)[0] >> 1) if ticket.seed is None else ticket.seed
        deterministic = evaluation.deterministic if ticket.deterministic is None else ticket.deterministic
        actions = bool(ticket.actions) and self._environments.spec.action.outputs <= MOST_OUTPUTS
        return evaluate(
            self._evaluated[size], actor, episodes, seed, deterministic, self._shutdown.check, actions=actions
        )

    def _count(self, header: Header, delivered: bool, columns: dict[str, NDArray[Any]]) -> None:
        tally = self._tally
        tally.waited += header.waited
        if not delivered:
            tally.discarded += 1
        elif header.kind == "rollout":
            tally.fragments += 1
            tally.steps += header.n
            tally.returns += columns["episode_return"].tolist()
        else:
            tally.evaluations += 1

    def _report(self) -> None:
        now = self._clock()
        if now - self._tally.since >= REPORT_SECONDS:
            logger.info("worked", extra={"fields": self._tally.report(now)})
            self._tally = Tally(now)
