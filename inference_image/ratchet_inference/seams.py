"""What the server asks of its parts, which are implemented elsewhere in this program and in `ratchet`."""

# ruff: noqa: D102 - the classes say what their properties are

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ratchet.api.v1alpha1.serverstats import EvaluatedActions
from ratchet.decisions.records import Decision
from ratchet.policies import PolicySpec
from ratchet.policies.artifact import PolicyLineage

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]


class Decided(Protocol):
    """What a policy decided for N observations.

    Attributes:
        action: (N, *action shape), as the environment takes it.
        log_probability: (N,).
        value: (N,), where the policy has one.
        states: (N, recurrent size), where the policy has a memory.

    """

    @property
    def action(self) -> NDArray[Any]: ...
    @property
    def log_probability(self) -> Floats: ...
    @property
    def value(self) -> Floats | None: ...
    @property
    def states(self) -> Floats | None: ...


class Policy(Protocol):
    """A policy that is ready to decide; belongs to one event loop.

    Attributes:
        digest: SHA-256 of its artifact.
        recurrent_size: numbers of memory that an episode carries; 0 without.
        lineage: where it comes from, where it says so.
        evaluated: what it did in the trainer's evaluation, where that is known.

    """

    @property
    def digest(self) -> str: ...
    @property
    def spec(self) -> PolicySpec: ...
    @property
    def recurrent_size(self) -> int: ...
    @property
    def lineage(self) -> PolicyLineage | None: ...
    @property
    def evaluated(self) -> EvaluatedActions | None: ...

    def decide(
        self,
        observations: NDArray[Any],
        *,
        masks: Bools | None,
        deterministic: Bools,
        temperature: Floats,
        seeds: Sequence[int | None],
        states: Floats | None,
    ) -> Decided:
        """Decides for N observations (N, *shape); masks (N, outputs) with every row allowing something."""
        ...


class Log(Protocol):
    """Where decisions are logged."""

    def record(self, decision: Decision) -> None:
        """Takes one; never waits, never raises."""
        ...

    @property
    def counts(self) -> Any:
        """What became of decisions: a dataclass of numbers, and of numbers by reason."""
        ...


class Residents(Protocol):
    """The policies in memory."""

    @property
    def current(self) -> Policy | None: ...
    @property
    def previous(self) -> Policy | None: ...


class Swappable(Residents, Protocol):
    """The policies in memory, and how others take their place."""

    async def load(self, source: str, digest: str | None = None) -> Any:
        """A policy that is verified and warm, and does not answer yet; raises ArtifactError."""
        ...

    def swap(self, policy: Any) -> None:
        """Lets a policy answer from now on."""
        ...
