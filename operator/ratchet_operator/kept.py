"""Which checkpoints of jobs a server may be started from. Their trainers must not remove them.

PolicyDeployments say so in their ledgers, which come before all that follows from them, and by what their
Deployments are made of, should a ledger be lost. Both are read as plain JSON: who has jobs alone needs no
models of rollouts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from ratchet_operator.kinds import SERVING_LABEL, Json, annotations_of, labels_of, namespace_of, sub
from ratchet_operator.ledger import LEDGER_ANNOTATION, REVISION_ANNOTATION


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint of a job of the same namespace.

    Attributes:
        job: its name.
        uid: of the job.
        checkpoint: its manifest's name.

    """

    job: str
    uid: str
    checkpoint: str


def kept_by(obj: Json | None) -> frozenset[Kept]:
    """What the ConfigMap of a PolicyDeployment, or the Deployment of one of its arms, speaks of."""
    if obj is None or SERVING_LABEL not in labels_of(obj):
        return frozenset()
    places = (
        str(checkpoint.get("uri", "")).split("/")[-5:]
        for annotation in (LEDGER_ANNOTATION, REVISION_ANNOTATION)
        for checkpoint in _checkpoints(annotations_of(obj).get(annotation))
    )
    # As `TrainingConfig.storage_prefix` and the store make it. What lies elsewhere no trainer removes.
    return frozenset(
        Kept(place[1], place[2], place[4].removesuffix(".json"))
        for place in places
        if len(place) == 5 and place[0] == namespace_of(obj) and place[3] == "manifests"
    )


def _checkpoints(text: str | None) -> Iterator[Json]:
    try:
        said: Any = orjson.loads(text) if text else None
    except orjson.JSONDecodeError:  # who reads it goes by the Deployments then, and so it is here
        return
    yield sub(said, "accepted")
    yield sub(said, "checkpoint")
    for revision in sub(said, "revisions").values():
        yield sub(revision, "checkpoint")
