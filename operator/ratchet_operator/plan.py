"""What a reconcile step wants done: values only, carried out by `execute`."""

from dataclasses import dataclass
from typing import Literal

from ratchet_operator.kinds import Json, Kind

ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of one object.

    Attributes:
        why: the first difference between wanted and live, or ABSENT: then it is only made, and what has
            its name already is not touched.
        version: resourceVersion that the object must still have, where a lost update would hurt.

    """

    kind: Kind
    obj: Json
    why: str
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Amend:
    """JSON patch (RFC 6902) of an object that is the user's; its `test`s say what must still be so."""

    kind: Kind
    namespace: str
    name: str
    operations: tuple[Json, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletion of exactly the object with this UID."""

    kind: Kind
    namespace: str
    name: str
    uid: str
    why: str


@dataclass(frozen=True, slots=True)
class CreateRedisSecret:
    """Creation of a Redis password; the executor brings the randomness."""

    namespace: str
    name: str
    uid: str
    host: str
    labels: dict[str, str]
    owner: Json


@dataclass(frozen=True, slots=True)
class CreateAdminSecret:
    """Creation of the token that a PolicyDeployment's servers take orders by; the executor brings the key."""

    namespace: str
    name: str
    uid: str
    labels: dict[str, str]
    owner: Json


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A Kubernetes Event about the reconciled object; `id` makes it happen once."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    id: str


@dataclass(frozen=True, slots=True)
class Plan:
    """One step. Carried out in this order: secrets, applies, amendments, status, occurrences, deletes.

    Attributes:
        status: JSON merge patch of the status subresource, None where nothing differs.
        requeue_after: seconds until the object must be looked at again by the clock.
        memo: for the next step of this process; nothing is lost with it.

    """

    secrets: tuple[CreateRedisSecret | CreateAdminSecret, ...] = ()
    apply: tuple[Apply, ...] = ()
    amend: tuple[Amend, ...] = ()
    status: Json | None = None
    occurrences: tuple[Occurrence, ...] = ()
    delete: tuple[Delete, ...] = ()
    requeue_after: float | None = None
    memo: object = None

    @property
    def writes(self) -> int:
        """How many requests this plan makes that change something."""
        return (
            len(self.secrets) + len(self.apply) + len(self.amend) + (self.status is not None)
            + len(self.occurrences) + len(self.delete)
        )  # fmt: skip
