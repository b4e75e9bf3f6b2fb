"""What a PolicyDeployment's spec means: the machine's rules, and the guards with their shares of error."""

from dataclasses import dataclass

from ratchet.api.v1alpha1.base import seconds
from ratchet.api.v1alpha1.policydeployment import Guard, PolicyDeploymentSpec, Strategy
from ratchet.api.v1alpha1.serverstats import LATENCY_BOUNDS_SECONDS
from ratchet.evidence import (
    DriftGuard,
    LatencyAgainstStable,
    LatencyLimit,
    RateAgainstStable,
    RateLimit,
    ReturnGuard,
    TripWire,
    split,
)
from ratchet_operator.rollout.values import GuardPolicy, Rules, Stage

Tested = RateAgainstStable | RateLimit | LatencyAgainstStable | LatencyLimit | ReturnGuard | DriftGuard
# The two of one kind whose tests need other figures than the first of it.
BASELINE, FROM_TRAINING = "episodeReturnBaseline", "actionDriftTraining"


@dataclass(frozen=True, slots=True)
class Court:
    """Everything that judges a trial.

    Attributes:
        tested: guards with statistics.
        alphas: the chance of a false rollback that each of them has, by name; they sum to falseRollbackRate.
        beta: the chance that a Pass is called proven and is not.
        wires: guards without statistics.
        horizon: seconds that an episode gets to end and report.
        baseline: mean return to compare with too.

    """

    tested: tuple[Tested, ...]
    alphas: dict[str, float]
    beta: float
    wires: tuple[TripWire, ...]
    horizon: float = 300.0
    baseline: float | None = None


def rules_of(spec: PolicyDeploymentSpec) -> Rules:
    """The machine's rules."""
    strategy = spec.strategy
    return Rules(
        paused=spec.paused,
        stages=stages_of(strategy),
        bake_seconds=seconds(strategy.bake),
        deadline_seconds=seconds(strategy.progress_deadline),
        cooldown_seconds=seconds(strategy.cooldown),
        attempts=strategy.attempts,
        sleep_seconds=seconds(spec.scale_to_zero_after) if spec.scale_to_zero_after is not None else None,
        policies={
            name: GuardPolicy(guard.on_fail, guard.on_not_enough_evidence, guard.on_source_down)
            for guard, tested in _guards(spec)
            for name in (one.name for one in tested)
        },
    )


def stages_of(strategy: Strategy) -> tuple[Stage, ...]:
    """A strategy is nothing but its stages."""
    match strategy.type:
        case "Canary":
            return tuple(
                Stage(step.weight, False, seconds(step.min_duration), step.approval)
                for step in strategy.canary.steps
            )
        case "BlueGreen":
            # All copies and no answers: the whole capacity is there and has seen what it will serve.
            return (Stage(100, True, 0.0, strategy.blue_green.approval),)
        case "Shadow":
            shadow = strategy.shadow
            return (Stage(shadow.weight, True, seconds(shadow.min_duration), shadow.then == "Wait"),)
        case "AB":
            return (Stage(strategy.ab.weight, False, seconds(strategy.ab.min_duration), True),)
        case "AllAtOnce":
            return ()


def court_of(spec: PolicyDeploymentSpec) -> Court:
    """The guards that are enabled, and how the false-rollback rate is split among them."""
    guards = spec.guards
    shares = {one.name: guard.share / len(tested) for guard, tested in _guards(spec) for one in tested}
    wires = (
        (
            guards.mask_violations,
            TripWire("maskViolations", "forbidden action", "forbidden actions", guards.mask_violations.limit),
        ),
        (guards.nan, TripWire("nan", "answer with NaN", "answers with NaN", guards.nan.limit)),
        (guards.restarts, TripWire("restarts", "restart", "restarts", guards.restarts.limit)),
    )
    return Court(
        tuple(one for _, tested in _guards(spec) for one in tested),
        split(guards.false_rollback_rate, shares),
        guards.false_promotion_rate,
        tuple(wire for guard, wire in wires if guard.enabled),
        float(seconds(guards.episode_return.horizon)),
        guards.episode_return.baseline,
    )


def _guards(spec: PolicyDeploymentSpec) -> list[tuple[Guard, list[Tested]]]:
    """Each enabled guard of the spec with its tests; a bound against stable and a limit are two tests."""
    guards, found = spec.guards, list[tuple[Guard, list[Tested]]]()
    for name, what, rate in (
        ("errorRate", "errors", guards.error_rate),
        ("fallbackRate", "fallbacks", guards.fallback_rate),
    ):
        tests: list[Tested] = [RateAgainstStable(name, what, rate.max_ratio, rate.tolerated, rate.minimum)]
        if rate.limit is not None:
            tests.append(RateLimit(f"{name}Limit", what, rate.limit, rate.minimum))
        found.append((rate, tests))
    slow, edges = guards.latency, LATENCY_BOUNDS_SECONDS
    tests = [LatencyAgainstStable("latency", slow.quantile, slow.max_ratio, edges, slow.minimum)]
    if slow.limit_milliseconds is not None:
        tests.append(
            LatencyLimit("latencyLimit", slow.quantile, slow.limit_milliseconds / 1000, edges, slow.minimum)
        )
    found.append((slow, tests))
    returns = guards.episode_return
    width = returns.range.high - returns.range.low if returns.range is not None else None
    relative = 0.05 if returns.max_relative_drop is None else returns.max_relative_drop
    drop, relative = (0.0, relative) if returns.max_drop is None else (returns.max_drop, 0.0)
    names = ["episodeReturn"] + ([BASELINE] if returns.baseline is not None else [])
    found.append((returns, [ReturnGuard(name, drop, relative, width, returns.minimum) for name in names]))
    drift = guards.action_drift
    tests = [DriftGuard("actionDrift", drift.max_distance, minimum=drift.minimum)]
    if drift.max_distance_from_training is not None:
        tests.append(DriftGuard(FROM_TRAINING, drift.max_distance_from_training, minimum=drift.minimum))
    found.append((drift, tests))
    return [(guard, tests) for guard, tests in found if guard.enabled]
