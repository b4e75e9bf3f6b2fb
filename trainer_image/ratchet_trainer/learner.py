"""The learner's loop: tickets out, fragments in, update, publish; evaluate, save, stop.

One thread does all of it. docs/data-plane.md says what is promised to workers and by them.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from numpy.typing import NDArray

from ratchet.api.v1alpha1 import TrainerStatus, seconds
from ratchet.api.v1alpha1.serverstats import EvaluatedActions
from ratchet.api.v1alpha1.trainingjob import Evaluations, Progress
from ratchet.experience import CorruptFragment, DataPlaneLost, Fragment, LearnerChannel, RedisUnreachable
from ratchet.policies.artifact import golden_observations
from ratchet.policies.spec import EnvironmentSpec
from ratchet.weights import encode
from ratchet_trainer.algorithms.batch import check, join
from ratchet_trainer.algorithms.errors import Diverged
from ratchet_trainer.algorithms.ppo import PPO
from ratchet_trainer.algorithms.ppo import Metrics as UpdateMetrics
from ratchet_trainer.board import Board
from ratchet_trainer.credit import Credit
from ratchet_trainer.evaluating import PendingEvaluation, with_result
from ratchet_trainer.intake import Intake
from ratchet_trainer.interruption import Interrupted
from ratchet_trainer.metrics import Metrics
from ratchet_trainer.rates import Curve, Rates
from ratchet_trainer.resume import Resumed
from ratchet_trainer.saving import Saver, Snapshot, Why
from ratchet_trainer.settings import Settings
from ratchet_trainer.stopping import Reason, progress_of, reason_to_stop
from ratchet_trainer.storing import Storing
from ratchet_trainer.trackers import Tracker

log = logging.getLogger(__name__)

READ_AT_MOST = 256
BLOCK_MS = 200
PIN_EVERY_SECONDS = 0.25
EVALUATION_SEED = 1_000_003
GOLDEN_OBSERVATIONS = 8


@dataclass
class Parts:
    """What the learner works with; each may be replaced in a test by another real one."""

    settings: Settings
    channel: LearnerChannel
    saver: Saver
    board: Board
    metrics: Metrics
    trackers: list[Tracker]
    stop: threading.Event
    clock: Callable[[], float] = time.monotonic


class Learner:
    """One trainer's life from its first ticket to its last checkpoint.

    Args:
        parts: of this process.
        environment: spaces, from the checkpoint or from the first worker.
        resumed: what an earlier trainer left, or None.

    """

    def __init__(self, parts: Parts, environment: EnvironmentSpec, resumed: Resumed | None) -> None:
        self._parts = parts
        self._config = parts.settings.config
        self._environment = environment
        device = "cuda" if parts.settings.device == "GPU" else "cpu"
        self._ppo = PPO(self._config.algorithm, environment, device)
        lag = self._config.max_policy_lag
        self._credit = Credit(self._config.fragments_per_batch, lag)
        self._intake = Intake(lag)
        self._rates = Rates()
        self._curve = Curve()
        self._evaluations = Evaluations()
        self._evaluation: PendingEvaluation | None = None
        self._acted: EvaluatedActions | None = None
        self._next_evaluation = self._config.evaluation.every_steps
        self._version = 0
        self._updates = 0
        self._resumed_from: str | None = None
        self._passed_over: list[str] = []
        self._last_update: UpdateMetrics | None = None
        self._policy_lag: float | None = None
        self._finished: Reason | None = None
        self._shows_finished = False
        self._tracked: tuple[int, int | None] | None = None
        self._seen: NDArray[Any] = golden_observations(None, environment.observation)
        if resumed is not None:
            self._restore(resumed)
        self._started = False
        since = parts.settings.active_since
        before = resumed.active_seconds if resumed is not None else 0.0
        self._active_since = parts.clock() - before if since is None else since
        self._pinned_at = float("-inf")
        every = seconds(self._config.checkpoint.interval)
        self._storing = Storing(
            parts.saver, parts.board, parts.stop, parts.clock, every, self._snapshot, self._intake.steps
        )

    def run(self) -> None:
        """Trains until a stop rule holds or the process is asked to end; either way the last state is stored.

        Raises:
            Diverged, Fenced, RedisUnreachable, StorageDenied, Superseded: training can't go on here.

        """
        try:
            self._train()
        except Interrupted:
            log.info("is asked to end while Redis does not answer")
        except RedisUnreachable:
            self._storing.before_the_end(self._intake.steps, self._version)
            raise
        except Diverged:
            self._storing.wait()  # what is on its way was good
            self._pin(force=True)
            raise
        if self._finished is not None:
            return
        self._storing.before_the_end(self._intake.steps, self._version)
        log.info("ends as asked", extra={"fields": {"steps": self._intake.steps}})

    def _train(self) -> None:
        anew = True
        while not self._parts.stop.is_set():
            try:
                if anew:
                    self._hand_out_anew()
                    self._pin(force=True)
                    anew = False
                if self._round():
                    return
            except DataPlaneLost as lost:
                log.warning(
                    "Redis lost its data, which is written again", extra={"fields": {"lost": str(lost)}}
                )
                self._parts.channel.begin(self._parts.channel.epoch)
                anew = True

    def _round(self) -> bool:
        """Reads what has arrived and does what it allows; True when training has finished."""
        self._receive()
        self._parts.saver.check()
        self._replace_lost_tickets()
        if self._evaluation is not None and self._evaluation.complete:
            self._conclude_evaluation()
        if self._evaluation is None:
            reason = self._reason_to_stop()
            if reason is not None:
                if self._evaluated_version() == self._version:
                    self._finish(reason)
                    return True
                self._begin_evaluation()
            elif self._update():
                self._publish()
                if self._intake.steps >= self._next_evaluation:
                    self._begin_evaluation()
                self._hand_out_rollouts()
        self._storing.what_is_due(self._intake.steps)
        self._pin()
        return False

    def _receive(self) -> None:
        """Waits only when there is nothing to do without new fragments."""
        waiting = self._evaluation is not None or len(self._intake.batch) < self._config.fragments_per_batch
        entries = self._parts.channel.read(READ_AT_MOST, BLOCK_MS if waiting else 1)
        now = self._parts.clock()
        self._parts.board.beat()
        for entry in entries:
            outcome = self._checked(entry.outcome)
            fragment = self._intake.offer(outcome, self._version, now)
            if isinstance(outcome, Fragment):
                self._note_answer(outcome)
            if fragment is None:
                log.info("an entry was refused", extra={"fields": {"entry": _sentence(outcome)}})
            else:
                self._started = True
        self._parts.channel.settle([entry.id for entry in entries])
        if entries:
            self._hand_out_rollouts()

    def _checked(self, outcome: Fragment | CorruptFragment) -> Fragment | CorruptFragment:
        """What is whole and yet not of this job is no better than what is damaged."""
        if isinstance(outcome, Fragment) and outcome.header.kind == "rollout":
            try:
                check(outcome, self._environment, self._config.algorithm.ppo.rollout_steps)
            except CorruptFragment as error:
                return error
        return outcome

    def _note_answer(self, fragment: Fragment) -> None:
        """A ticket is off the list once its answer is here, or that of a twin."""
        header = fragment.header
        if header.kind == "rollout":
            self._credit.took("rollout", header.seconds)
            self._credit.answered(header.ticket)
            return
        self._credit.took("evaluate", header.seconds)
        if self._evaluation is not None:
            for ticket in self._evaluation.take(fragment):
                self._credit.answered(ticket)

    def _update(self) -> bool:
        batch = self._intake.take_batch(self._config.fragments_per_batch, self._version)
        if not batch:
            return False
        begun = self._parts.clock()
        self._policy_lag = sum(self._version - f.header.version for f in batch) / len(batch)
        progress = progress_of(self._config.stop, self._intake.steps)
        played = batch[0].columns["observation"]
        self._seen = played[:: -(-len(played) // GOLDEN_OBSERVATIONS), 0].copy()
        self._last_update = self._ppo.update(join(batch, self._environment), progress)
        self._version += 1
        self._updates += 1
        now = self._parts.clock()
        self._rates.note(now, self._intake.steps, now - begun)
        if self._intake.mean_return is not None:
            self._curve.add(self._intake.steps, self._intake.mean_return)
        return True

    def _publish(self) -> None:
        blob = encode(self._ppo.acting_parameters(), self._version)
        self._parts.channel.publish(self._version, blob)

    def _hand_out_rollouts(self) -> None:
        self._intake.discard_stale(self._version)
        if self._finished is None and self._reason_to_stop() is None:
            epoch = self._parts.channel.epoch
            tickets = self._credit.rollouts(
                len(self._intake.batch), epoch, self._version, self._parts.clock()
            )
            self._parts.channel.issue(tickets)

    def _hand_out_anew(self) -> None:
        """After a start, or after Redis was lost: the policy, an evaluation if it is due, and tickets."""
        self._credit.forget()
        self._evaluation = None
        self._publish()
        if self._intake.steps >= self._next_evaluation:
            self._begin_evaluation()
        self._hand_out_rollouts()

    def _replace_lost_tickets(self) -> None:
        now = self._parts.clock()
        if not self._credit.any_late(now):
            return
        replaced = self._credit.overdue(self._parts.channel.outstanding(), now)
        if self._evaluation is not None:
            for old, new in replaced:
                self._evaluation.replace(old, new)
        if replaced:
            log.info("tickets were lost with their workers", extra={"fields": {"tickets": len(replaced)}})
            self._parts.channel.issue([new for _, new in replaced])

    def _begin_evaluation(self) -> None:
        """Until it is complete no update happens, so that what is judged is what is saved."""
        evaluation = self._config.evaluation
        seed = EVALUATION_SEED + self._config.algorithm.seed
        tickets = self._credit.evaluation(
            evaluation.episodes, evaluation.deterministic, seed, self._parts.channel.epoch, self._version,
            self._parts.clock(),
        )  # fmt: skip
        self._evaluation = PendingEvaluation(self._version, self._intake.steps, [{t.id} for t in tickets])
        self._parts.channel.issue(tickets)

    def _conclude_evaluation(self) -> None:
        evaluation, self._evaluation = self._evaluation, None
        if evaluation is None:
            return
        result = evaluation.result(datetime.now(UTC))
        if not math.isfinite(result.mean_return):
            raise Diverged(
                f"an evaluation of policy version {result.policy_version} returned {result.mean_return}: "
                "the environment's rewards must be finite"
            )
        # Not before, or an evaluation that is lost with Redis or with this process would be left out.
        every = self._config.evaluation.every_steps
        self._next_evaluation = (result.steps // every + 1) * every
        best = self._evaluations.best
        self._evaluations = with_result(self._evaluations, result)
        self._acted = evaluation.acted(self._environment.action, self._config.evaluation.deterministic)
        fields = {
            "steps": result.steps,
            "meanReturn": round(result.mean_return, 3),
            "episodes": result.episodes,
        }
        log.info("evaluated", extra={"fields": fields})
        if self._reason_to_stop() is None and (best is None or result.mean_return >= best.mean_return):
            self._storing.is_best()

    def _evaluated_version(self) -> int | None:
        latest = self._evaluations.latest
        return latest.policy_version if latest is not None else None

    def _evaluated_return(self) -> float | None:
        """Of the policy as it is now; None where it has not been evaluated."""
        latest = self._evaluations.latest
        return latest.mean_return if latest is not None and latest.policy_version == self._version else None

    def _reason_to_stop(self) -> Reason | None:
        return reason_to_stop(
            self._config.stop, self._intake.steps, self._active_seconds(), self._evaluated_return()
        )

    def _active_seconds(self) -> float:
        return max(0.0, self._parts.clock() - self._active_since)

    def _finish(self, reason: Reason) -> None:
        """Says so only once the final checkpoint is stored: whoever hears it may end this process."""
        self._finished = reason
        if not self._storing.final(self._version, lambda: self._pin(force=True)):
            return
        self._shows_finished = True
        self._pin(force=True)
        log.info("finished", extra={"fields": {"reason": reason, "steps": self._intake.steps}})

    def _snapshot(self, why: Why) -> Snapshot:
        return Snapshot(
            why=why,
            epoch=self._parts.channel.epoch,
            version=self._version,
            steps=self._intake.steps,
            mean_return=self._evaluated_return(),
            tensors=self._ppo.state_dict(),
            policy=self._ppo.served_parameters(),
            policy_spec=self._ppo.policy_spec,
            observations=self._seen,
            progress=self._progress_json(),
            metrics=asdict(self._last_update) if self._last_update else {},
            evaluated=self._acted if self._evaluated_version() == self._version else None,
        )

    def _progress_json(self) -> dict[str, Any]:
        return Resumed.to_json(
            environment=self._environment,
            intake=self._intake,
            evaluations=self._evaluations,
            next_evaluation=self._next_evaluation,
            version=self._version,
            updates=self._updates,
            active_seconds=self._active_seconds(),
            finished=self._finished,
            progress=self._progress(),
            saved=self._parts.saver.saved,
        )

    def _restore(self, resumed: Resumed) -> None:
        self._ppo.load_state_dict(resumed.tensors)
        self._intake = resumed.intake(self._config.max_policy_lag)
        self._evaluations = resumed.evaluations
        self._curve = Curve(resumed.progress.curve)
        self._next_evaluation = resumed.next_evaluation
        self._version, self._updates = resumed.version, resumed.updates
        self._resumed_from, self._passed_over = resumed.name, resumed.passed_over
        self._seen = resumed.observations
        self._acted = resumed.acted

    def _progress(self) -> Progress:
        intake = self._intake
        return Progress(
            steps=intake.steps,
            updates=self._updates,
            episodes=intake.episodes,
            mean_return=intake.mean_return,
            mean_length=intake.mean_length,
            steps_per_second=self._rates.steps_per_second(self._parts.clock()),
            policy_version=self._version,
            policy_lag=self._policy_lag,
            fragments_accepted=intake.accepted,
            fragments_duplicate=intake.duplicate,
            fragments_dropped=intake.dropped,
            learner_busy=self._rates.busy(self._parts.clock()),
            curve=self._curve.points,
        )

    def _pin(self, *, force: bool = False) -> None:
        now = self._parts.clock()
        if not force and now - self._pinned_at < PIN_EVERY_SECONDS:
            return
        self._pinned_at = now
        parts = self._parts
        status = TrainerStatus(
            uid=self._config.uid,
            attempt=parts.settings.attempt,
            epoch=parts.channel.epoch,
            state=self._state(),
            finished_reason=self._finished if self._shows_finished else None,
            message=parts.saver.complaint,
            device=parts.settings.device,
            resumed_from=self._resumed_from,
            passed_over=self._passed_over,
            active_seconds=round(self._active_seconds(), 3),
            progress=self._progress(),
            evaluation=self._evaluations,
            checkpoints=parts.saver.saved,
            pools=self._intake.pools(now),
        )
        figures = parts.metrics.show(status, self._last_update)
        news = (self._updates, self._evaluated_version())
        if news != self._tracked:
            self._tracked = news
            for tracker in parts.trackers:
                tracker.log(figures, self._intake.steps)
        parts.board.pin(status)

    def _state(self) -> Literal["WaitingForWorkers", "Training", "Finished"]:
        if self._shows_finished:
            return "Finished"
        return "Training" if self._started else "WaitingForWorkers"


def _sentence(outcome: object) -> str:
    if isinstance(outcome, Fragment):
        header = outcome.header
        return f"{header.kind} {header.incarnation}/{header.sequence} of policy version {header.version}"
    return str(outcome)
