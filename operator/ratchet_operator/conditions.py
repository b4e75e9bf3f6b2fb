"""metav1 conditions out of verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import ValidationError

from ratchet_operator.kinds import Json, items
from ratchet_operator.ledger import stamp

MESSAGE_LIMIT = 2048


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer and why: `reason` for machines (CamelCase), `message` for humans."""

    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""

    @property
    def holds(self) -> bool:
        """Whether the answer is yes."""
        return self.status == "True"


def yes(reason: str, message: str = "") -> Verdict:
    """A verdict that holds."""
    return Verdict("True", reason, message)


def no(reason: str, message: str = "") -> Verdict:
    """A verdict that does not hold."""
    return Verdict("False", reason, message)


def invalid_spec(error: ValidationError) -> Verdict:
    """Why a spec that the installed CRD let through can't be read."""
    return no("InvalidSpec", words_of(error))


def words_of(error: ValidationError) -> str:
    """Each field and what is wrong with it."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()
    )


def unknown(reason: str, message: str = "") -> Verdict:
    """Nobody can say."""
    return Verdict("Unknown", reason, message)


def conditions(
    previous: object, verdicts: Mapping[str, Verdict], generation: int, now: datetime
) -> list[Json]:
    """The whole list, in the order of `verdicts`; a transition time moves only when the status does."""
    before = {item.get("type"): item for item in items({"items": previous}, "items")}
    result: list[Json] = []
    for kind, verdict in verdicts.items():
        old = before.get(kind)
        unmoved = old is not None and old.get("status") == verdict.status and old.get("lastTransitionTime")
        result.append(
            {
                "type": kind,
                "status": verdict.status,
                "reason": verdict.reason,
                "message": verdict.message[:MESSAGE_LIMIT],
                "lastTransitionTime": old["lastTransitionTime"] if old and unmoved else stamp(now),
                "observedGeneration": generation,
            }
        )
    return result
