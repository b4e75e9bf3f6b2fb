"""What makes a worker end by itself."""


class ConfigError(Exception):
    """The job can't work as written; the text is one sentence that says what to write instead."""


class Interrupted(Exception):  # noqa: N818 - a request, not a fault
    """The worker was asked to end, and its time to finish what it does is over."""
