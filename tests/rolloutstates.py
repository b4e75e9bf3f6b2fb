"""States of a PolicyDeployment as the operator writes them, built through the API's model."""

import copy
from typing import Any

from ratchet.api.v1alpha1.common import Condition
from ratchet.api.v1alpha1.policydeployment import (
    Arm,
    DecisionRecord,
    Lineage,
    PastTrial,
    PolicyDeploymentSpec,
    PolicyDeploymentStatus,
    Quarantined,
    Trial,
)
from ratchet.evidence import Count, Decision, RateAgainstStable, TripWire

Resource = dict[str, Any]

NOW = "2026-01-31T12:10:00Z"
OLD, NEW, OLDER = ("sha256:" + digit * 64 for digit in "9a0")
JOB = {"type": "TrainingJob", "trainingJob": {"jobRef": {"name": "cartpole"}}}
WATCHING = "18 s of this stage are left."


def condition(kind: str, reason: str, message: str, status: str = "True") -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message, last_transition_time=NOW)


def arm(digest: str, weight: int, ready: int = 1, replicas: int = 1, steps: int = 40_000) -> Arm:
    made = Lineage(
        job="cartpole",
        attempt=1,
        checkpoint=f"{steps:012d}-1-40",
        steps=steps,
        image="registry.example.com/server@sha256:" + "7" * 64,
        configuration="sha256:" + "c" * 64,
    )
    return Arm(
        digest=digest,
        name=digest[7:19],
        revision=digest[7:8] * 8,
        weight=weight,
        replicas=replicas,
        ready=ready,
        requests_per_second=weight / 2,
        lineage=made,
    )


def record(decision: Decision, action: str = "None") -> DecisionRecord:
    return DecisionRecord(
        guard=decision.guard,
        verdict=decision.verdict.value,
        message=decision.sentence,
        canary=decision.canary,
        stable=decision.stable,
        canary_samples=decision.canary_n,
        stable_samples=decision.stable_n,
        estimate=decision.estimate,
        low=decision.low,
        high=decision.high,
        bound=decision.bound,
        odds=decision.evidence,
        needed=decision.needed,
        proven=decision.proven,
        action=action,
        time=NOW,
    )


def errors(canary: int, of: int, stable: int = 8, of_stable: int = 1_620) -> DecisionRecord:
    """The judge's own record of an error rate, after nine looks of equal length."""
    guard = RateAgainstStable("errorRate", "errors", 1.5, 0.001)
    state = guard.start()
    for look in range(9):
        bad, bad_stable = (all_ // 9 + (look < all_ % 9) for all_ in (canary, stable))
        state = state.add(Count(of // 9, bad), Count(of_stable // 9, bad_stable))
    return record(guard.judge(state, alpha=0.01, beta=0.05))


def nan(seen: int, answers: int) -> DecisionRecord:
    return record(TripWire("nan", "answer with NaN", "answers with NaN").judge(seen, answers))


def returns(canary: float, stable: float, low: float, high: float, n: int = 120) -> DecisionRecord:
    return DecisionRecord(
        guard="episodeReturn",
        verdict="Pass",
        message=f"mean return {canary:.4g} over {n} canary episodes",
        canary=canary,
        stable=stable,
        canary_samples=n,
        stable_samples=n,
        estimate=canary - stable,
        low=low,
        high=high,
        bound=-9.4,
        odds=0.4,
        needed=100,
        time=NOW,
    )


def deployment(
    reason: str = "",
    message: str = "",
    *,
    spec: Resource | None = None,
    command: str | None = None,
    **status: Any,
) -> Resource:
    """One object; without a reason the operator has not looked at it."""
    made = PolicyDeploymentSpec.model_validate({"source": JOB, **(spec or {})})
    told = [condition("Progressing", reason, message)] if reason else []
    well = (
        [condition("Available", "ServersReady", "2 of 2 servers are ready.")] if status.get("stable") else []
    )
    written = PolicyDeploymentStatus(
        observed_generation=1 if reason else None, conditions=[*told, *well], command=command, **status
    )
    metadata: Resource = {"name": "cartpole", "namespace": "default", "generation": 1}
    metadata["creationTimestamp"] = "2026-01-31T12:00:00Z"
    return {
        "apiVersion": "ratchet.dev/v1alpha1",
        "kind": "PolicyDeployment",
        "metadata": metadata,
        "spec": made.to_wire(),
        "status": written.to_wire(),
    }


def ordered(resource: Resource, command: str) -> Resource:
    """The same with an order that the operator has not taken yet."""
    changed = copy.deepcopy(resource)
    changed["metadata"].setdefault("annotations", {})["ratchet.dev/rollout"] = command
    return changed


def trial(phase: str, stage: int = 0, since: str = "2026-01-31T12:09:48Z", **more: Any) -> Trial:
    return Trial(phase=phase, stage=stage, since=since, **more)


SERVING = {"stable": arm(OLD, 100, 2, 2), "source_digest": OLD, "previous": OLDER}
PROMOTED_BEFORE = PastTrial(digest=OLD, outcome="Promoted", time="2026-01-31T11:00:00Z")
TRIED = {
    "stable": arm(OLD, 75, 2, 2),
    "canary": arm(NEW, 25, steps=120_000),
    "source_digest": NEW,
    "previous": OLDER,
}
FELL = errors(9, 180).message

PENDING = deployment()
NO_POLICY = deployment("SourceUnknown", "cartpole has no checkpoint yet.")
SERVES = deployment("Serving", "999999999999 serves everybody.", **SERVING, history=[PROMOTED_BEFORE])
ASLEEP = deployment(
    "ScaledToZero", "No server runs since 2026-01-31T12:00:00Z; the next request starts some.",
    **{**SERVING, "stable": arm(OLD, 100, 0, 0)}, spec={"scaleToZeroAfter": "15m"},
)  # fmt: skip
SURGING = deployment(
    "Surging",
    "0 of 1 pods of aaaaaaaaaaaa are ready for 5%.",
    stable=arm(OLD, 100, 2, 2),
    canary=arm(NEW, 0, ready=0, steps=120_000),
    source_digest=NEW,
    trial=trial("Surge", waiting_since="2026-01-31T12:09:48Z"),
)
STAGE_2 = deployment(
    "Watching", WATCHING, **TRIED, trial=trial("Stage", 1), decisions=[errors(1, 180), nan(0, 180)]
)
PAUSED = deployment(
    "Paused", "Paused at 25%; guards go on watching.", **TRIED, trial=trial("Stage", 1, paused=True)
)
AWAITING = deployment(
    "AwaitingApproval",
    "Every guard passes: resume, promote or abort.",
    **TRIED,
    spec={"strategy": {"canary": {"steps": [{"weight": 5}, {"weight": 25, "approval": True}]}}},
    trial=trial("Stage", 1, since="2026-01-31T12:00:00Z"),
    decisions=[errors(3, 900)],
)
FAILING = deployment("RollingBack", FELL, **TRIED, trial=trial("RollBack"), decisions=[errors(9, 180)])
ROLLED_BACK = deployment(
    "RolledBack", FELL, **{**SERVING, "source_digest": NEW},
    history=[PROMOTED_BEFORE, PastTrial(digest=NEW, outcome="Failed", message=FELL, time=NOW)],
    quarantined=[Quarantined(digest=NEW, message=FELL)],
)  # fmt: skip
QUARANTINED = deployment(
    "Quarantined", f"aaaaaaaaaaaa is not tried again: {FELL}", **{**SERVING, "source_digest": NEW},
    history=[PROMOTED_BEFORE, PastTrial(digest=NEW, outcome="Failed", message=FELL, time=NOW)],
    quarantined=[Quarantined(digest=NEW, message=FELL)],
)  # fmt: skip
BAKING = deployment(
    "Baking",
    "What was before stays ready for 288 s more.",
    stable=arm(OLD, 0, 2, 2),
    canary=arm(NEW, 100, 2, 2, steps=120_000),
    source_digest=NEW,
    trial=trial("Bake"),
)
PROMOTED = deployment(
    "Promoted", "aaaaaaaaaaaa is the stable policy.",
    stable=arm(NEW, 100, 2, 2, steps=120_000), source_digest=NEW, previous=OLD,
    history=[PROMOTED_BEFORE, PastTrial(digest=NEW, outcome="Promoted", time=NOW)],
)  # fmt: skip
AB_GUARDS = {"strategy": {"type": "AB"}, "guards": {"episodeReturn": {"enabled": True}}}
AB_BETTER = deployment(
    "AwaitingApproval", "Every guard passes: resume, promote or abort.", spec=AB_GUARDS,
    stable=arm(OLD, 50, 2, 2), canary=arm(NEW, 50, 2, 2), source_digest=NEW, trial=trial("Stage"),
    decisions=[returns(199.1, 187.2, 3.2, 20.6)],
)  # fmt: skip
SHADOWING = deployment(
    "Watching", "288 s of this stage are left.", spec={"strategy": {"type": "Shadow"}},
    stable=arm(OLD, 100, 2, 2), canary=arm(NEW, 0), source_digest=NEW, trial=trial("Stage"),
    decisions=[errors(0, 900)],
)  # fmt: skip
FIRST = deployment(
    "Surging", "1 of 2 pods of aaaaaaaaaaaa are ready for 100%.",
    canary=arm(NEW, 0, 1, 2), source_digest=NEW, trial=trial("Surge", waiting_since=NOW),
)  # fmt: skip
LEGAL = [
    PENDING, NO_POLICY, SERVES, ASLEEP, SURGING, STAGE_2, PAUSED, AWAITING, FAILING, ROLLED_BACK, QUARANTINED,
    BAKING, PROMOTED, AB_BETTER, SHADOWING, FIRST,
]  # fmt: skip
