"""What a guard says, and the record of why: values, interval, bound, evidence, and a sentence for a human."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import TypeAdapter

_MOST_ODDS = 1e6
T = TypeVar("T")


class Verdict(StrEnum):
    """The four answers of a guard."""

    PASS = "Pass"  # noqa: S105 - not a password
    FAIL = "Fail"
    NOT_ENOUGH_EVIDENCE = "NotEnoughEvidence"
    SOURCE_DOWN = "SourceDown"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a test found, before it is a verdict.

    Attributes:
        canary, stable: the values compared; None where there is none.
        canary_n, stable_n: of how many requests, or episodes.
        estimate: what is tested: a rate, a ratio, a difference.
        low, high: bounds of the estimate, each ever wrong with probability at most the guard's alpha.
        bound: what the estimate must not break.
        is_within: whether the estimate itself keeps the bound.
        log_e_broken, log_e_kept: log evidence that the true value breaks the bound, and that it keeps it.
        sentence: the values in words.

    """

    canary: float | None
    stable: float | None
    canary_n: int
    stable_n: int
    estimate: float
    low: float
    high: float
    bound: float
    is_within: bool
    log_e_broken: float
    log_e_kept: float
    sentence: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The record of one verdict; JSON-safe: no NaN, infinities as None.

    Attributes:
        evidence: odds found for the verdict's side, at most 1e6.
        needed: odds at which the guard fails, 1/alpha.
        proven: a Pass with evidence that the bound is kept; else it is minimum evidence without a failure.
        estimate: what low and high are the bounds of.
        moot: there is not enough evidence and none to come: it stands in nobody's way.

    """

    guard: str
    verdict: Verdict
    sentence: str
    canary: float | None = None
    stable: float | None = None
    canary_n: int = 0
    stable_n: int = 0
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    evidence: float = 1.0
    needed: float | None = None
    alpha: float | None = None
    proven: bool = False
    estimate: float | None = None
    moot: bool = False


def decide(guard: str, measured: Measured, alpha: float, beta: float, minimum: int) -> Decision:
    """Turn measurements into a verdict.

    Fail: the bound is broken, with odds of 1/alpha. Pass: it is kept, with odds of 1/beta (proven); or the
    canary has the minimum number of samples, its estimate keeps the bound and nothing failed. Else there is
    not enough evidence.
    """
    fails = measured.log_e_broken >= -math.log(alpha)
    proven = not fails and measured.log_e_kept >= -math.log(beta)
    passes = proven or (not fails and measured.canary_n >= minimum and measured.is_within)
    log_e = measured.log_e_kept if proven else measured.log_e_broken
    evidence = min(math.exp(min(log_e, 100.0)), _MOST_ODDS)
    if fails:
        verdict = Verdict.FAIL
        why = f"odds of {_odds(evidence)} that the limit is broken, {_odds(1 / alpha)} needed"
    elif proven:
        verdict, why = Verdict.PASS, f"odds of {_odds(evidence)} that the limit is kept"
    elif passes:
        verdict, why = Verdict.PASS, f"{minimum:,} samples reached and nothing against it"
    else:
        verdict = Verdict.NOT_ENOUGH_EVIDENCE
        lacks = f"{measured.canary_n:,} of {minimum:,} samples" if measured.canary_n < minimum else "in doubt"
        why = f"not enough evidence: {lacks}, odds of {_odds(evidence)}, {_odds(1 / alpha)} needed"
    return Decision(
        guard, verdict, f"{measured.sentence}; {why}.",
        _finite(measured.canary), _finite(measured.stable), measured.canary_n, measured.stable_n,
        _finite(measured.low), _finite(measured.high), _finite(measured.bound),
        evidence, 1 / alpha, alpha, proven, _finite(measured.estimate),
    )  # fmt: skip


def source_down(guard: str, why: str) -> Decision:
    """The verdict where the guard's figures can't be read: neither for nor against the canary."""
    return Decision(guard, Verdict.SOURCE_DOWN, f"No figures: {why}.")


def moot(guard: str, why: str) -> Decision:
    """The verdict where there is nothing to compare with, now or later."""
    return Decision(guard, Verdict.NOT_ENOUGH_EVIDENCE, f"Not compared: {why}.", moot=True)


def split(alpha: float, weights: Mapping[str, float]) -> dict[str, float]:
    """Each guard's share of the chance of a false rollback: by the union bound they sum to alpha.

    Steps and looks cost nothing, for each test's evidence runs through the whole rollout.
    """
    total = sum(weights.values())
    return {guard: alpha * weight / total for guard, weight in weights.items()}


def dump(state: object) -> str:
    """A test's state, or a decision, as JSON; floats come back exactly."""
    return TypeAdapter[Any](type(state)).dump_json(state, exclude_defaults=True).decode()


def load(kind: type[T], text: str) -> T:
    """The inverse of `dump`.

    Raises:
        pydantic.ValidationError: where the text is no such state.

    """
    return TypeAdapter(kind).validate_json(text)


def _odds(evidence: float) -> str:
    return f"{evidence:,.{1 if evidence < 10 else 0}f} : 1" if evidence < _MOST_ODDS else "over a million : 1"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
