"""Episodes of equal age: only those that began in the same window are compared, once all had time to end.

Long episodes end late. A canary that began a minute ago has only short ones to show, which would make it look
worse, or better, than it is.
"""

from dataclasses import dataclass, field, replace

from ratchet.evidence.means import Moments


@dataclass(frozen=True, slots=True)
class Episodes:
    """Episodes of one arm that began in one window.

    Attributes:
        began: how many began.
        returns: of those whose rewards have come.

    """

    began: int = 0
    returns: Moments = field(default_factory=Moments)

    def __add__(self, other: "Episodes") -> "Episodes":
        return Episodes(self.began + other.began, self.returns + other.returns)


@dataclass(frozen=True, slots=True)
class Cohort:
    """Both arms' episodes of one window."""

    window: int
    canary: Episodes = field(default_factory=Episodes)
    stable: Episodes = field(default_factory=Episodes)


@dataclass(frozen=True, slots=True)
class OpenCohorts:
    """Windows that are not old enough to be judged, oldest first.

    Attributes:
        horizon: age in windows at which a cohort is closed; what comes later is dropped.
        closed: the newest window that is closed.

    """

    horizon: int
    closed: int = -1
    cohorts: tuple[Cohort, ...] = ()

    def add(self, window: int, canary: Episodes, stable: Episodes) -> "OpenCohorts":
        """Increments of episodes that began in a window."""
        if window <= self.closed:
            return self
        by_window = {cohort.window: cohort for cohort in self.cohorts}
        seen = by_window.get(window, Cohort(window))
        by_window[window] = Cohort(window, seen.canary + canary, seen.stable + stable)
        return replace(self, cohorts=tuple(by_window[key] for key in sorted(by_window)))

    def close(self, now: int) -> tuple["OpenCohorts", tuple[Cohort, ...]]:
        """Take out the cohorts that are old enough in window `now`."""
        newest = max(self.closed, now - self.horizon - 1)
        due = tuple(cohort for cohort in self.cohorts if cohort.window <= newest)
        return replace(self, closed=newest, cohorts=self.cohorts[len(due) :]), due
