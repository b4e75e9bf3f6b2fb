"""Returns of episodes by policy, as running sums that an operator can subtract and compare. Pure.

An episode counts for the arm and policy that took its first decision, whatever answered later. A cohort is
the episodes that began in the same stretch of time: only cohorts of equal age may be compared, for long
episodes are reported later than short ones.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from ratchet.api.v1alpha1.serverstats import COHORT_SECONDS, COHORTS_KEPT


@dataclass(slots=True)
class Tally:
    """Episodes of one policy, or of one cohort of it.

    Attributes:
        started: episodes that took a first decision here.
        n: returns that came in time, defaults included.
        mean: of them.
        m2: sum of their squared deviations from the mean (Welford 1962).
        steps: of the episodes that said their length.
        defaulted: of `n`, those that are the default, for none came in time.
        missing: episodes without a return when the wait was over, or that were forgotten for want of room.
        late: returns that came after the wait; in no other sum.

    """

    started: int = 0
    n: int = 0
    mean: float = 0.0
    m2: float = 0.0
    steps: int = 0
    defaulted: int = 0
    missing: int = 0
    late: int = 0

    def add(self, value: float, length: int | None, *, default: bool) -> None:
        """Takes the return of one episode."""
        self.n += 1
        delta = value - self.mean
        self.mean += delta / self.n
        self.m2 += delta * (value - self.mean)
        self.steps += length or 0
        self.defaulted += default

    @property
    def awaited(self) -> int:
        """Episodes whose wait is not over."""
        return self.started - self.n - self.missing

    def json(self) -> dict[str, Any]:
        """As `/v1/stats` shows it."""
        return {
            "started": self.started,
            "n": self.n,
            "mean": self.mean,
            "m2": self.m2,
            "steps": self.steps,
            "defaulted": self.defaulted,
            "missing": self.missing,
            "late": self.late,
            "awaited": self.awaited,
        }


class Returns:
    """Tallies of the newest policies, each with its newest cohorts.

    Args:
        cohorts: kept for each policy.
        policies: pairs of arm and digest that are kept.

    """

    def __init__(self, cohorts: int = COHORTS_KEPT, policies: int = 16) -> None:
        self._cohorts = cohorts
        self._policies = policies
        self._tallies: OrderedDict[tuple[str, str], tuple[Tally, OrderedDict[int, Tally]]] = OrderedDict()

    def tallies(self, arm: str, digest: str, began: float) -> tuple[Tally, Tally]:
        """Of the policy and of the cohort that an episode belongs to; the oldest make room for new ones."""
        key = (arm, digest)
        if key not in self._tallies:
            self._tallies[key] = (Tally(), OrderedDict())
            if len(self._tallies) > self._policies:
                self._tallies.popitem(last=False)
        total, cohorts = self._tallies[key]
        number = int(began // COHORT_SECONDS)
        cohort = cohorts.get(number)
        if cohort is None:
            cohort = cohorts[number] = Tally()
            if len(cohorts) > self._cohorts:
                cohorts.popitem(last=False)
        return total, cohort

    def json(self, now: float, arm: str | None = None) -> list[dict[str, Any]]:
        """One object for each arm and digest.

        A cohort is `closed` once no episode can join it and none is awaited.
        """
        return [
            {
                "arm": name,
                "digest": digest,
                **total.json(),
                "cohorts": [
                    {
                        "start": (start := number * COHORT_SECONDS),
                        "age": max(0.0, now - start),
                        "closed": now >= start + COHORT_SECONDS and cohort.awaited == 0,
                        **cohort.json(),
                    }
                    for number, cohort in cohorts.items()
                ],
            }
            for (name, digest), (total, cohorts) in self._tallies.items()
            if arm is None or name == arm
        ]
