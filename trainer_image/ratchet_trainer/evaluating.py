"""One evaluation at a time: its shards come together here, all of one policy version."""

from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from ratchet.api.v1alpha1.serverstats import EvaluatedActions
from ratchet.api.v1alpha1.trainingjob import EvaluationResult, Evaluations
from ratchet.experience import Fragment, Ticket
from ratchet.policies.evaluated import evaluated_actions
from ratchet.policies.spec import SpaceSpec

Column = NDArray[np.float64]


@dataclass
class PendingEvaluation:
    """An evaluation that is under way, and what came back.

    Attributes:
        tickets: ids that ask for each shard that has not come: its first ticket and every replacement.
        actions: the columns of actions of each shard; None from a worker that does not send them.

    """

    version: int
    steps: int
    tickets: list[set[int]]
    returns: list[float] = field(default_factory=list[float])
    lengths: list[int] = field(default_factory=list[int])
    actions: list[tuple[Column, Column] | None] = field(default_factory=list[tuple[Column, Column] | None])

    def replace(self, old: Ticket, new: Ticket) -> None:
        """A shard is asked for again under another id; the first to answer is taken."""
        for shard in self.tickets:
            if old.id in shard:
                shard.add(new.id)

    def take(self, fragment: Fragment) -> set[int]:
        """Takes in a shard; the ids of all tickets that asked for it.

        None are returned for a shard that is there already, of another evaluation, or of another policy.
        """
        header = fragment.header
        found = next((shard for shard in self.tickets if header.ticket in shard), None)
        if found is None or header.version != self.version:
            return set()
        self.tickets.remove(found)
        self.returns += fragment.columns["episode_return"].tolist()
        self.lengths += fragment.columns["episode_length"].tolist()
        columns = fragment.columns
        sent = "action_sum" in columns
        self.actions.append((columns["action_sum"], columns["action_squares"]) if sent else None)
        return found

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
            mean_return=round(float(returns.mean()), 3),
            std_return=round(float(returns.std()), 3),
            mean_length=round(float(np.mean(self.lengths)), 3),
            time=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        )

    def acted(self, space: SpaceSpec, deterministic: bool) -> EvaluatedActions | None:
        """What the policy did; None where not every shard says so.

        Args:
            space: of the actions.
            deterministic: whether the tickets asked for the most likely ones.

        """
        sent = [columns for columns in self.actions if columns is not None]
        widths = {part.shape[1] for columns in sent for part in columns}
        if len(sent) < len(self.actions) or widths != {space.outputs}:
            return None
        sums, squares = (np.concatenate([one[i] for one in sent]) for i in (0, 1))
        return evaluated_actions(space, deterministic, np.asarray(self.lengths), sums, squares)


def with_result(before: Evaluations, result: EvaluationResult) -> Evaluations:
    """The newest and the best; of two equal ones the newer, which has trained longer."""
    best = before.best
    if best is None or result.mean_return >= best.mean_return:
        best = result
    return Evaluations(latest=result, best=best)
