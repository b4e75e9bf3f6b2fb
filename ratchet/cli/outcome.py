"""How the command ends: exit codes that scripts can trust, and the error that carries one."""

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes; the low ones answer the question that was asked."""

    OK = 0
    NO = 1  # the job failed, or the manifest is refused
    USAGE = 2  # wrong arguments, or a file that can't be read
    UNAVAILABLE = 69  # no cluster to talk to (EX_UNAVAILABLE of sysexits.h)
    TIMED_OUT = 124  # --timeout passed, as with timeout(1)
    INTERRUPTED = 130  # Ctrl-C


EPILOG = (
    "Exit codes: 0 done, job succeeded, manifest valid; 1 job failed, manifest refused or object not "
    "found; 2 wrong usage; 69 no cluster reached; 130 stopped watching, the job goes on."
)


class CommandError(Exception):
    """Something that a user can put right, said in a sentence or a few."""

    def __init__(self, message: str, code: Exit = Exit.NO) -> None:
        super().__init__(message)
        self.code = code
