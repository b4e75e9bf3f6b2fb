"""One evaluation at a time: its shards come together here, all of one policy version."""

from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from ratchet.api.v1alpha1.trainingjob import EvaluationResult, Evaluations
from ratchet.experience import Fragment, Ticket


@dataclass
class PendingEvaluation:
    """Tickets of an evaluation that is under way, by id, and what came back."""

    version: int
    steps: int
    tickets: dict[int, Ticket]
    returns: list[float] = field(default_factory=list[float])
    lengths: list[int] = field(default_factory=list[int])

    def replace(self, old: int, new: Ticket) -> None:
        """A lost shard is asked for again under another id."""
        del self.tickets[old]
        self.tickets[new.id] = new

    def take(self, fragment: Fragment) -> bool:
        """Takes in a shard; False for one that is not of this evaluation, or of another policy."""
        header = fragment.header
        if header.ticket not in self.tickets or header.version != self.version:
            return False
        del self.tickets[header.ticket]
        self.returns += fragment.columns["episode_return"].tolist()
        self.lengths += fragment.columns["episode_length"].tolist()
        return True

    @property
    def complete(self) -> bool:
        """Every shard is there."""
        return not self.tickets

    def result(self, now: datetime) -> EvaluationResult:
        """Figures over all episodes."""
        returns = np.asarray(self.returns)
        return EvaluationResult(
            steps=self.steps,
            policy_version=self.version,
            episodes=len(returns),
            mean_return=float(returns.mean()),
            std_return=float(returns.std()),
            mean_length=float(np.mean(self.lengths)),
            time=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        )


def with_result(before: Evaluations, result: EvaluationResult) -> Evaluations:
    """The newest and the best; of two equal ones the newer, which has trained longer."""
    best = before.best
    if best is None or result.mean_return >= best.mean_return:
        best = result
    return Evaluations(latest=result, best=best)
