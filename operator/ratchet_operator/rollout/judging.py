"""What the pods of both arms say, turned into evidence and into the guards' verdicts. Pure.

Counters of pods are cumulative. Only the difference of two answers of the same pod and incarnation counts,
so a lost answer loses nothing, and one that comes late or twice counts nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ratchet.api.v1alpha1.base import ApiModel
from ratchet.api.v1alpha1.serverstats import ServerStats
from ratchet.evidence import Decision, Verdict
from ratchet_operator.rollout.fromspec import Court


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """What one pod said when it was asked.

    Attributes:
        uid: of the pod, as Kubernetes gives it.
        arm: checkpoint digest of the arm that the pod belongs to.
        stats: its /v1/stats; None where it gave no answer.

    """

    uid: str
    arm: str
    stats: ServerStats | None


class Evidence(ApiModel):
    """All that is remembered of a trial's traffic. `Evidence()`: nothing was seen.

    Its JSON is at most 64 KiB, however many pods there are: `to_annotation`, and back by
    `Evidence.model_validate_json`. Losing it loses evidence, and never counts anything twice.

    Attributes:
        trial: whose evidence this is; another trial begins with none.

    """

    trial: str = ""

    def to_annotation(self) -> str:
        """The JSON that is stored."""
        return self.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)


def judge(
    court: Court,
    evidence: Evidence,
    trial: str,
    canary: str,
    stable: str | None,
    answers: Sequence[PodAnswer],
    restarts: int,
    now: datetime,
) -> tuple[Evidence, tuple[Decision, ...]]:
    """Takes in what the pods say and judges the trial. To be asked once a second, from the trial's beginning.

    Args:
        court: from the spec.
        evidence: what the call before returned, or what the ledger has kept of it.
        trial: names the trial and its attempt, such as "<digest>/<attempt>".
        canary: checkpoint digest on trial.
        stable: checkpoint digest that serves; None where nothing does yet.
        answers: one for each pod, of either arm, that is ready or was asked before; others are passed over.
        restarts: of the trial's pods so far, crashes included; the API server's figure.
        now: the operator's clock; the pods' clocks are never compared with it.

    Returns:
        The evidence, to be kept, and one decision for each guard of the court, Prometheus' not among them.

    """
    guards = (*court.tested, *court.wires)
    return Evidence(trial=trial), tuple(
        Decision(guard.name, Verdict.NOT_ENOUGH_EVIDENCE, "Nothing was seen yet.") for guard in guards
    )
