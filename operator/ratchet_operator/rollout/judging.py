"""What the pods of both arms say, turned into evidence and into the guards' verdicts. Pure.

Counters of pods are cumulative. Only the difference of two answers of the same pod and incarnation counts,
so a lost answer loses nothing, and one that comes late or twice counts nothing. Evidence runs through the
whole trial: neither a stage nor the operator's death begins it anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import NormalDist

from pydantic import Field

from ratchet.api.v1alpha1.base import ApiModel
from ratchet.api.v1alpha1.serverstats import ServerStats
from ratchet.evidence import (
    LEAST_EPISODES,
    Cohort,
    Count,
    Decision,
    Drift,
    DriftGuard,
    LatencyAgainstStable,
    LatencyLimit,
    LatencyRatio,
    Moments,
    RateAgainstStable,
    RateLimit,
    RateRatio,
    Reference,
    ReturnGuard,
    Returns,
    Shift,
    ShiftGuard,
    Verdict,
    moot,
    source_down,
)
from ratchet.evidence.latency import added
from ratchet_operator.rollout.counting import (
    CANARY,
    STABLE,
    Actions,
    Counters,
    Known,
    Outcomes,
    cohorts_of,
    counters_of,
    decisions_per_episode,
    increment,
    reference_of,
)
from ratchet_operator.rollout.fromspec import BASELINE, FROM_TRAINING, Court, Tested

# Looks may follow one another sooner, when something was written: a bad second must not count as two events.
LOOK_SECONDS = 0.9
# An arm none of whose pods has answered for so long can't be judged.
SILENT_SECONDS = 10.0
# Of more pods of an arm so many are sample enough, and all that an annotation has room for.
PODS_KEPT = 32


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """What one pod said when it was asked.

    Attributes:
        uid: of the pod, as Kubernetes gives it.
        arm: that the pod belongs to, as the machine calls it.
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
        began: when it was first judged; unix seconds of the operator's clock, as all times here.
        looked: when answers were last taken in.
        complete_since: a pod that is not in `pods` and began later was never counted.
        policies: what an arm's pods call their policy.
        heard: when a pod of an arm last said something new.
        pods: by UID.
        answers: of the canary.
        acted: decisions of the canary whose actions were counted.
        rates: by guard.
        canary_latency, stable_latency: counts that wait until both arms have answered.
        returns, baseline: cohorts against stable, and against a constant.
        reference: what the canary did in training's evaluation, where that is asked for and known.
        as_trained, otherwise: decisions of the canary that were chosen as in that evaluation, and those that
            were not or of which it can't be told.
        trained, trained_shift: the former, against the evaluation.
        length: decisions to an episode, None where it can't be told.

    """

    trial: str = ""
    began: float = 0.0
    looked: float = 0.0
    complete_since: float = 0.0
    policies: dict[str, str] = Field(default={})
    heard: dict[str, float] = Field(default={})
    pods: dict[str, Known] = Field(default={})
    answers: int = 0
    acted: int = 0
    nan: int = 0
    masks: int = 0
    restarts: int = 0
    rates: dict[str, RateRatio] = Field(default={})
    latency: LatencyRatio | None = None
    canary_latency: tuple[int, ...] = ()
    stable_latency: tuple[int, ...] = ()
    latency_added: float = 0.0
    returns: Returns = Returns()
    baseline: Returns = Returns()
    drift: Drift = Drift()
    shift: Shift = Shift()
    reference: Reference | None = None
    as_trained: int = 0
    otherwise: int = 0
    trained: Drift = Drift()
    trained_shift: Shift = Shift()
    length: float | None = 1.0

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
    *,
    serves_all: bool = False,
) -> tuple[Evidence, tuple[Decision, ...]]:
    """Takes in what the pods say and judges the trial. To be asked once a second, from the trial's beginning.

    Who asks sooner gets the same verdicts again; nothing is lost, for what pods say is cumulative.

    Args:
        court: from the spec.
        evidence: what the call before returned, or what the ledger has kept of it.
        trial: names the trial and its attempt, such as "<arm>/<attempt>".
        canary: the arm on trial.
        stable: the arm that serves; None where nothing does yet.
        answers: one for each pod of these two arms that is there; of other arms they are passed over.
        restarts: of the trial's pods so far, crashes included; the API server's figure.
        now: the operator's clock; the pods' clocks are never compared with it.
        serves_all: whether everybody is the canary's, and the silence of what was before says nothing.

    Returns:
        The evidence, to be kept, and one decision for each guard of the court, Prometheus' not among them.

    """
    at = now.timestamp()
    if evidence.trial != trial:
        evidence = Evidence(trial=trial, began=at, complete_since=at, latency_added=at)
    answers = [answer for answer in answers if answer.arm in (canary, stable)]
    called = {one.arm: one.stats.current for one in answers if one.stats and one.stats.current}
    evidence = _update(
        evidence,
        policies={**called, **evidence.policies},
        restarts=max(evidence.restarts, restarts),
    )
    # Before the canary has said what it calls its policy, no answer can be told to be its own.
    if canary in evidence.policies:
        if abs(at - evidence.looked) >= LOOK_SECONDS:
            evidence = _update(_take(court, evidence, canary, stable, answers, at), looked=at)
        silent = _silent(evidence, [one for one in answers if one.arm == canary or not serves_all], at)
    else:
        silent = ""
    return evidence, tuple(
        decision
        if decision.verdict is Verdict.FAIL or not silent or decision.guard == "restarts"
        else source_down(decision.guard, silent)
        for decision in _decisions(court, evidence)
    )


def _take(
    court: Court,
    evidence: Evidence,
    canary: str,
    stable: str | None,
    answers: Sequence[PodAnswer],
    at: float,
) -> Evidence:
    """Adds what each pod's answer adds to the pod's last one."""
    theirs, ours = evidence.policies[canary], evidence.policies.get(stable or "")
    has_actions = any(isinstance(guard, DriftGuard) for guard in court.tested)
    pods, complete_since = dict(evidence.pods), evidence.complete_since
    heard = dict(evidence.heard)
    there = {answer.uid for answer in answers}
    increments: list[Counters] = []
    cohorts: list[Cohort] = []
    routers: list[ServerStats] = []
    for answer in answers:
        stats, is_canary, known = answer.stats, answer.arm == canary, pods.get(answer.uid)
        if stats is None or answer.arm not in evidence.policies:
            continue
        if known is None:
            mates = [uid for uid, pod in pods.items() if pod.arm == answer.arm]
            gone = next((uid for uid in mates if uid not in there), None)
            if len(mates) >= PODS_KEPT:
                if gone is None:
                    continue
                del pods[gone]
                complete_since = at
        counters = counters_of(stats, theirs, ours, is_canary=is_canary, has_actions=has_actions)
        # What made room in this very look is not there, so it is not this one.
        is_new = stats.uptime_seconds < at - evidence.complete_since
        found = increment(known, answer.arm, stats, counters, is_new=is_new)
        if found is None:
            continue
        known, more = found
        heard[answer.arm] = at
        increments.append(more)
        sides = ((STABLE, theirs), None) if is_canary else ((CANARY, theirs), (STABLE, ours or ""))
        known, ripe = cohorts_of(stats, *sides, known, court.horizon, at - evidence.began)
        cohorts += ripe
        pods[answer.uid] = known
        if not is_canary:
            routers.append(stats)
    reference = evidence.reference
    if reference is None and any(guard.name == FROM_TRAINING for guard in court.tested):
        said = [one.stats for one in answers if one.arm == canary and one.stats]
        told = [one.evaluated for one in said if one.evaluated and one.current == theirs]
        reference = reference_of(told[0]) if told else None
    evidence = _update(
        evidence,
        pods=pods,
        heard=heard,
        reference=reference,
        complete_since=complete_since,
        length=decisions_per_episode(routers) if routers else evidence.length,
    )
    evidence = _add(court, evidence, increments)
    evidence = _add_returns(court, evidence, cohorts)
    return _add_latency(court, evidence, increments, at, is_complete=all(answer.stats for answer in answers))


def _add(court: Court, evidence: Evidence, increments: Sequence[Counters]) -> Evidence:
    """Each pod is a stratum of its own.

    Pods may differ in what the world does to them, and in how much of it the canary gets; within one both
    arms meet the same.
    """
    rates, drift, shift = dict(evidence.rates), evidence.drift, evidence.shift
    for guard in court.tested:
        if isinstance(guard, RateAgainstStable):
            state, begun = rates.get(guard.name), guard.start()
            if state is None or state.question != begun.question:
                state = begun
            rates[guard.name] = state.look(
                [
                    (more.canary.count(_bad(guard, more.canary)), more.stable.count(_bad(guard, more.stable)))
                    for more in increments
                ]
            )
        elif guard.name == FROM_TRAINING:
            for more in increments:
                evidence = _add_trained(evidence, more.canary_actions)
        elif isinstance(guard, DriftGuard):
            for more in increments:
                drift = _with_drift(drift, more)
                shift = _with_shift(shift, more)
    return _update(
        evidence,
        rates=rates,
        drift=drift,
        shift=shift,
        answers=evidence.answers + sum(more.canary.requests for more in increments),
        acted=evidence.acted + sum(more.canary_actions.number for more in increments),
        nan=evidence.nan + sum(more.nan for more in increments),
        masks=evidence.masks + sum(more.masks for more in increments),
    )


def _bad(guard: RateAgainstStable, outcomes: Outcomes) -> int:
    return outcomes.wrong if guard.name == "errorRate" else outcomes.failed


def _with_drift(drift: Drift, more: Counters) -> Drift:
    canary, stable = more.canary_actions.counts, more.stable_actions.counts
    lengths = {len(counts) for counts in (drift.canary, drift.stable, canary, stable) if counts}
    # Arms that act in different spaces can't be compared.
    return drift.add(canary, stable) if len(lengths) == 1 else drift


def _with_shift(shift: Shift, more: Counters) -> Shift:
    canary, stable = more.canary_actions.moments, more.stable_actions.moments
    width = len(shift.components) or len(canary) or len(stable)
    nothing = (Moments(),) * width
    canary, stable = canary or nothing, stable or nothing
    return shift.add(canary, stable) if width and len(canary) == len(stable) == width else shift


def _add_trained(evidence: Evidence, canary: Actions) -> Evidence:
    """What was chosen in another way than in the evaluation can't be compared with it."""
    reference = evidence.reference
    if reference is None or not canary.number:
        return evidence
    if not canary.chosen(deterministic=reference.deterministic):
        return _update(evidence, otherwise=evidence.otherwise + canary.number)
    changes: dict[str, object] = {"as_trained": evidence.as_trained + canary.number}
    if canary.counts and len(canary.counts) == len(reference.shares):
        trained = evidence.trained if evidence.trained.reference else Drift(reference=reference.shares)
        changes["trained"] = trained.add(canary.counts)
    elif canary.mean and len(canary.mean) == len(reference.mean):
        changes["trained_shift"] = evidence.trained_shift.add(canary.moments, reference.arm)
    return _update(evidence, **changes)


def _add_returns(court: Court, evidence: Evidence, cohorts: Sequence[Cohort]) -> Evidence:
    returns, baseline = evidence.returns, evidence.baseline
    compared = baseline.contrast.stable.all
    if compared.n and compared.mean != court.baseline:
        # Its sums hold the number that the spec had before.
        baseline = Returns()
    for cohort in cohorts:
        # One without episodes of both has nothing to compare, and says nothing of how many report.
        if cohort.canary.began and cohort.stable.began:
            returns = returns.add(cohort)
        if cohort.canary.began and court.baseline is not None:
            baseline = baseline.add(cohort, court.baseline)
    return _update(evidence, returns=returns, baseline=baseline)


def _add_latency(
    court: Court, evidence: Evidence, increments: Sequence[Counters], at: float, *, is_complete: bool
) -> Evidence:
    """Both arms' latencies of the same time, which come from different pods.

    What one arm said waits for the other's answer: a moment that was slow for both must not be compared with
    another one.
    """
    guard = next((one for one in court.tested if isinstance(one, LatencyAgainstStable)), None)
    if guard is None:
        return evidence
    canary, stable, latency = evidence.canary_latency, evidence.stable_latency, evidence.latency
    for more in increments:
        canary, stable = added(canary, more.canary_latency), added(stable, more.stable_latency)
    begun = guard.start()
    if latency is None or latency.question != begun.question:
        latency = begun
    if is_complete or at - evidence.latency_added > SILENT_SECONDS:
        latency = latency.add(canary, stable)
        canary, stable = (), ()
        evidence = _update(evidence, latency_added=at)
    return _update(evidence, canary_latency=canary, stable_latency=stable, latency=latency)


def _silent(evidence: Evidence, answers: Sequence[PodAnswer], at: float) -> str:
    """Why the arms can't be judged, in words; empty where they can."""
    for arm in {answer.arm: None for answer in answers}:
        heard = evidence.heard.get(arm, evidence.began)
        if at - heard > SILENT_SECONDS:
            return f"no pod of {arm.removeprefix('sha256:')[:12]} has answered for {at - heard:.0f} s"
    return ""


def _decisions(court: Court, evidence: Evidence) -> list[Decision]:
    found = [_judged(guard, evidence, court.alphas[guard.name], court.beta) for guard in court.tested]
    happened = {"nan": evidence.nan, "maskViolations": evidence.masks, "restarts": evidence.restarts}
    return found + [wire.judge(happened[wire.name], evidence.answers) for wire in court.wires]


def _judged(guard: Tested, evidence: Evidence, alpha: float, beta: float) -> Decision:
    match guard:
        case RateAgainstStable():
            return guard.judge(evidence.rates.get(guard.name, guard.start()), alpha, beta)
        case RateLimit():
            rates = evidence.rates.get(guard.name.removesuffix("Limit"))
            return guard.judge(rates.canary if rates else Count(), alpha, beta)
        case LatencyAgainstStable():
            return guard.judge(evidence.latency or guard.start(), alpha, beta)
        case LatencyLimit():
            return guard.judge(evidence.latency.canary if evidence.latency else (), alpha, beta)
        case ReturnGuard(name=name) if name == BASELINE:
            return guard.judge(evidence.baseline, alpha, beta)
        case ReturnGuard():
            return guard.judge(evidence.returns, alpha, beta)
        case DriftGuard(name=name) if name == FROM_TRAINING:
            return _judged_trained(guard, evidence, alpha, beta)
        case DriftGuard():
            return _judged_drift(guard, evidence, alpha, beta)


def _judged_drift(guard: DriftGuard, evidence: Evidence, alpha: float, beta: float) -> Decision:
    """By counts where there are some, else by moments."""
    drift, shift, length = evidence.drift, evidence.shift, evidence.length
    if length is None:
        why = "actions of one episode depend on each other, and the servers do not count episodes"
        return Decision(guard.name, Verdict.NOT_ENOUGH_EVIDENCE, f"Drift can't be judged: {why}.")
    if not shift.components:
        together = length * _outputs(drift, evidence.acted)
        return replace(guard, decisions_per_episode=together).judge(drift, alpha, beta)
    return ShiftGuard(guard.name, _apart(guard.distance), length, guard.minimum).judge(shift, alpha, beta)


def _judged_trained(guard: DriftGuard, evidence: Evidence, alpha: float, beta: float) -> Decision:
    """Likewise; half of the guard's share is for what the evaluation leaves open."""
    reference = evidence.reference
    if not evidence.looked:
        return Decision(guard.name, Verdict.NOT_ENOUGH_EVIDENCE, "The canary has not said what it serves.")
    if reference is None:
        return moot(guard.name, "the canary's policy comes without figures of an evaluation")
    if reference.episodes < LEAST_EPISODES:
        enough = f"of the {LEAST_EPISODES} episodes that are needed"
        return moot(guard.name, f"the evaluation of the canary's policy has {reference.episodes} {enough}")
    if evidence.otherwise > evidence.as_trained:
        ways = ("sampled", "the most likely ones")
        why = f"most actions are not {ways[reference.deterministic]}, as those of the evaluation are"
        return moot(guard.name, why)
    # Clients that name no episodes play them all the same.
    length = evidence.length if evidence.length and evidence.length > 1 else reference.length
    slack, alpha = reference.slack(alpha / 2), alpha / 2
    if reference.shares:
        together = length * _outputs(evidence.trained, evidence.as_trained)
        test = replace(guard, decisions_per_episode=together, slack=sum(slack) / 2)
        return test.judge(evidence.trained, alpha, beta)
    apart = _apart(guard.distance)
    test = ShiftGuard(guard.name, apart, length, guard.minimum, slack, of_training=True)
    return test.judge(evidence.trained_shift, alpha, beta)


def _outputs(drift: Drift, acted: int) -> float:
    """Counted actions to a decision: a MultiDiscrete one has several."""
    return max(1.0, sum(drift.canary) / acted) if acted else 1.0


def _apart(distance: float) -> float:
    """Standard deviations that two normal distributions of this total variation are apart."""
    return 2 * NormalDist().inv_cdf((1 + min(distance, 0.9999)) / 2)


def _update(evidence: Evidence, **changes: object) -> Evidence:
    return evidence.model_copy(update=changes)
