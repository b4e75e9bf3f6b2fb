"""Verdicts of guards in words and figures that fit a table; the judge's own sentence is in `message`."""

from collections.abc import Callable
from dataclasses import dataclass

from ratchet.api.v1alpha1.policydeployment import DecisionRecord
from ratchet.cli.words import NONE, short

WORDS = {"Pass": "pass", "Fail": "fail", "NotEnoughEvidence": "waiting", "SourceDown": "no data"}
COLOURS = {"Pass": "green", "Fail": "red", "NotEnoughEvidence": "yellow", "SourceDown": "yellow"}

Figure = Callable[[float], str]


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _times(ratio: float) -> str:
    return f"{ratio:.2g}x" if ratio < 100 else f"{ratio:.0f}x"


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _plain(amount: float) -> str:
    return f"{amount:.4g}"


def _signed(amount: float) -> str:
    return f"{amount:+.4g}"


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a guard's figures are written: the arms' values, the estimate, and which side is allowed."""

    values: Figure = _plain
    estimate: Figure = _plain
    allowed: str = "≤"


# As `ratchet_operator.rollout.fromspec` names them.
SHAPES = {
    "errorRate": _Shape(_percent, _times),
    "errorRateLimit": _Shape(_percent, _percent),
    "fallbackRate": _Shape(_percent, _times),
    "fallbackRateLimit": _Shape(_percent, _percent),
    "latency": _Shape(_time, _times),
    "latencyLimit": _Shape(_time, _percent),
    "episodeReturn": _Shape(_plain, _signed, "≥"),
    "episodeReturnBaseline": _Shape(_plain, _signed, "≥"),
    "actionDrift": _Shape(),
    "actionDriftTraining": _Shape(),
    "maskViolations": _Shape(),
    "nan": _Shape(),
    "restarts": _Shape(),
}
OTHER = _Shape(allowed="")


@dataclass(frozen=True, slots=True)
class Row:
    """One guard in a line."""

    guard: str
    verdict: str
    colour: str
    canary: str
    stable: str
    samples: str
    interval: str
    allowed: str
    odds: str


def row(record: DecisionRecord) -> Row:
    """One guard's verdict."""
    shape = SHAPES.get(record.guard, OTHER)
    samples = short(record.canary_samples)
    if record.stable_samples:
        samples += f" / {short(record.stable_samples)}"
    needed = record.needed is not None and not record.proven
    return Row(
        record.guard,
        "proven" if record.proven else WORDS[record.verdict],
        COLOURS[record.verdict],
        NONE if record.canary is None else shape.values(record.canary),
        NONE if record.stable is None else shape.values(record.stable),
        samples,
        interval(record),
        NONE if record.bound is None else f"{shape.allowed} {shape.estimate(record.bound)}".strip(),
        f"{_odds(record.odds)} / {_odds(record.needed)}" if needed else NONE,
    )


def interval(record: DecisionRecord) -> str:
    """What certainly lies between the bounds, in the guard's own unit: 0.6x to 1.9x."""
    figure = SHAPES.get(record.guard, OTHER).estimate
    if record.low is None and record.high is None:
        return NONE
    if record.high is None:
        return f"≥ {figure(record.low or 0.0)}"
    if record.low is None:
        return f"≤ {figure(record.high)}"
    return f"{figure(record.low)} to {figure(record.high)}"


def _odds(odds: float | None) -> str:
    if odds is None:
        return NONE
    return short(odds) if odds >= 10 else f"{odds:.2g}"


def report(record: DecisionRecord | None) -> tuple[str, str]:
    """What an A/B test has found: a conclusion and the figures behind it."""
    if record is None or record.estimate is None or not (record.canary_samples and record.stable_samples):
        return "no returns of both arms yet", ""
    low, high = record.low, record.high
    if low is not None and low > 0:
        conclusion = "the trial is better"
    elif high is not None and high < 0:
        conclusion = "the trial is worse"
    else:
        conclusion = "no difference is shown"
    sure = (
        "" if record.needed is None else f", each bound ever wrong with at most {_percent(1 / record.needed)}"
    )
    figures = (
        f"{_signed(record.estimate)} ({interval(record)}{sure}) over {record.canary_samples:,} and "
        f"{record.stable_samples:,} episodes: "
    )
    return conclusion, figures
