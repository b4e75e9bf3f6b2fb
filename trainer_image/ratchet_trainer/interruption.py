"""Being asked to end, while waiting for something else."""

import threading


class Interrupted(Exception):  # noqa: N818 - names what happened
    """Asked to end in the midst of waiting."""


def pause(stop: threading.Event, seconds: float) -> None:
    """Sleeps; raises Interrupted instead once `stop` is set."""
    if stop.wait(seconds):
        raise Interrupted
