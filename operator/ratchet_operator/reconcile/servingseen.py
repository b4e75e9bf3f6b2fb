"""What a step for a PolicyDeployment is told: the cluster around it, and what its servers said."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ratchet.evidence import Decision
from ratchet_operator.build.waking import Door
from ratchet_operator.kinds import REVISION_LABEL, Json, Kind, labels_of
from ratchet_operator.policies.waiting import is_ready
from ratchet_operator.reconcile.servinggateway import Looked
from ratchet_operator.rollout.judging import PodAnswer
from ratchet_operator.rollout.remembering import Memo
from ratchet_operator.rollout.values import Split
from ratchet_operator.settings import Installation


@dataclass(frozen=True, slots=True)
class Heard:
    """What the servers of one PolicyDeployment said at the last look.

    Attributes:
        answers: one for each pod that a request can reach.
        generation: of the routes that they were compared with.
        split: that all of them follow, None where they don't.
        traffic: by arm, for how long it is not idle yet; None where nobody can say.
        trouble: why a server did not take its route.
        queries: what the spec's guards found in Prometheus.
        rates: requests a second by arm.
        gateway: what was found of the user's HTTPRoute, None where there is none to look for.
        hosts: by arm, addresses of those that answer and follow their route.

    """

    answers: tuple[PodAnswer, ...] = ()
    generation: int = -1
    split: Split | None = None
    traffic: Mapping[str, int] | None = None
    trouble: str = ""
    queries: tuple[Decision, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    gateway: Looked | None = None
    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


@dataclass(frozen=True, slots=True)
class ServingSeen:
    """Everything that is seen around a PolicyDeployment.

    Attributes:
        children: by kind and name, those that its label finds.
        job: the RLTrainingJob of its source.
        secrets: UID of each Secret that was looked for, None where it is not there.
        door: where requests are held while no pod is there.
        memo: what the step before left; nothing is lost with it.
        due_in: seconds until progress may be written again.

    """

    installation: Installation
    config_map: Json | None = None
    children: Mapping[Kind, Mapping[str, Json]] = field(default_factory=dict[Kind, Mapping[str, Json]])
    pods: tuple[Json, ...] = ()
    job: Json | None = None
    secrets: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    heard: Heard = Heard()
    door: Door = field(default_factory=Door)
    memo: Memo = field(default_factory=Memo)
    refused: str | None = None
    due_in: float = 0.0

    def of(self, kind: Kind) -> Mapping[str, Json]:
        """Children of a kind."""
        return self.children.get(kind, {})

    def ready(self, arm: str | None) -> list[Json]:
        """The pods of an arm that the Service sends requests to."""
        return [pod for pod in self.pods if is_ready(pod) and labels_of(pod).get(REVISION_LABEL) == arm]
