"""When training ends. Pure: whoever asks brings the figures."""

from typing import Literal

from ratchet.api.v1alpha1 import seconds
from ratchet.api.v1alpha1.training import Stop

Reason = Literal["TargetReturnReached", "MaxStepsReached", "MaxDurationReached"]


def reason_to_stop(
    stop: Stop, steps: int, active_seconds: float, evaluated_return: float | None
) -> Reason | None:
    """The first rule that holds.

    Args:
        stop: the job's rules.
        steps: environment steps counted so far.
        active_seconds: time since the job first started, without suspended time.
        evaluated_return: mean return of the newest evaluation, of the policy as it is now.

    """
    if (
        stop.target_return is not None
        and evaluated_return is not None
        and evaluated_return >= stop.target_return
    ):
        return "TargetReturnReached"
    if stop.max_steps is not None and steps >= stop.max_steps:
        return "MaxStepsReached"
    if stop.max_duration is not None and active_seconds >= seconds(stop.max_duration):
        return "MaxDurationReached"
    return None


def progress_of(stop: Stop, steps: int) -> float:
    """How far training is by `maxSteps`, from 0 to 1; 0 without that rule."""
    return 0.0 if stop.max_steps is None else min(1.0, steps / stop.max_steps)
