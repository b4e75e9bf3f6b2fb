"""When progress is worth a write."""

from datetime import datetime

LEAST_SECONDS = 2.0
SECONDS_PER_JOB = 0.05


def seconds_until_due(written: datetime | None, jobs: int, now: datetime) -> float:
    """Seconds until progress may be written again: every 2 s, and more rarely where there are many jobs.

    Args:
        written: when this operator last wrote this object's progress; None after its start.
        jobs: how many jobs this operator serves.
        now: the time.

    """
    if written is None:
        return 0.0
    interval = max(LEAST_SECONDS, jobs * SECONDS_PER_JOB)
    # A clock that was set back must not put it off for as long as that.
    return min(interval, max(0.0, interval - (now - written).total_seconds()))
