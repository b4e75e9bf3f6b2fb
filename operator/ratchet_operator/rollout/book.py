"""What must be remembered of a PolicyDeployment: the machine's state, the arms, the routes, the evidence.

It lives as annotations on `<name>-rollout`, written with a resourceVersion precondition and before all that
follows from it. The status only shows it.
"""

import logging
from collections.abc import Iterable

from pydantic import Field, ValidationError

from ratchet.api.v1alpha1.base import ApiModel
from ratchet.api.v1alpha1.policydeployment import DecisionRecord
from ratchet_operator.kinds import Json, annotations_of, name_of
from ratchet_operator.ledger import LEDGER_ANNOTATION, REVISION_ANNOTATION
from ratchet_operator.rollout.revision import Checkpoint, Revision
from ratchet_operator.rollout.values import Nap, Rollout, Split

log = logging.getLogger("ratchet.book")


class Routed(ApiModel):
    """A `Split` as it is stored."""

    weights: dict[str, int] = Field(default={})
    mirrored: tuple[str, int] | None = None
    evicted: tuple[str, ...] = ()

    @classmethod
    def of(cls, split: Split) -> "Routed":
        """To be stored."""
        return cls(weights=dict(split.weights), mirrored=split.mirrored, evicted=tuple(sorted(split.evicted)))

    @property
    def split(self) -> Split:
        """As it was."""
        return Split(dict(self.weights), self.mirrored, frozenset(self.evicted))


class Book(ApiModel):
    """The memory of one PolicyDeployment.

    Attributes:
        accepted: the checkpoint that is followed to.
        revisions: by name, of all arms that live or may come back.
        digests: of checkpoints, by the revisions that anything here still speaks of.
        generation: of the routes.
        peak: pods that the whole traffic has needed since the trial began.
        gateway: name of the HTTPRoute that may have a share of ours, until it is known to have none.
        records: verdicts that acted, newest last.

    """

    state: Rollout = Rollout()
    accepted: Checkpoint | None = None
    revisions: dict[str, Revision] = Field(default={})
    digests: dict[str, str] = Field(default={})
    routed: Routed = Routed()
    generation: int = 0
    peak: int = 0
    gateway: str | None = None
    records: tuple[DecisionRecord, ...] = ()

    def to_annotation(self) -> str:
        """The JSON that is stored."""
        return self.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)


def read_book(
    config_map: Json | None, live: Iterable[Json], selected: str | None, waking: str | None = None
) -> Book:
    """The book from where it is written; where that is gone or damaged, what the cluster itself says.

    Args:
        config_map: `<name>-rollout`.
        live: Deployments of the arms, each of which carries what it was made of.
        selected: the revision that the Service sends everybody to.
        waking: now, where requests may be held for it. How far it sleeps or wakes is lost; who takes it for
            awake would close the door on those who wait.

    """
    found = _revisions(live)
    text = annotations_of(config_map or {}).get(LEDGER_ANNOTATION)
    if text is not None:
        try:
            book = Book.model_validate_json(text, extra="ignore")
        except ValidationError as error:
            log.warning("a ledger can't be read", extra={"error": str(error)[:500]})
        else:
            return book.model_copy(update={"revisions": {**found, **book.revisions}})
    stable = selected if selected in found else None
    weights = {stable: 100} if stable else {}
    return Book(
        state=Rollout(stable=stable, nap=Nap(phase="Waking", since=waking) if stable and waking else None),
        accepted=found[stable].checkpoint if stable else None,
        revisions=found,
        routed=Routed(weights=weights),
    )


def _revisions(live: Iterable[Json]) -> dict[str, Revision]:
    found: dict[str, Revision] = {}
    for deployment in live:
        text = annotations_of(deployment).get(REVISION_ANNOTATION)
        try:
            revision = Revision.model_validate_json(text or "", extra="ignore")
        except ValidationError:
            log.warning("a Deployment does not say what it is", extra={"child": name_of(deployment)})
        else:
            found[revision.name] = revision
    return found
