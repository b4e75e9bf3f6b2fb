"""Fragments laid side by side: what one update learns from. Nothing here needs torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratchet.experience import CorruptFragment, Fragment
from ratchet.policies import EnvironmentSpec, SpaceSpec, flatten_observation

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Time first, then the environments of all fragments.

    Attributes:
        observation: (T, N, features) float32, as a network reads it, not normalized.
        action: (T, N, A) as the policy chose it: float32 for a Box, int64 otherwise.
        log_probability: (T, N) as acted.
        reward: (T, N).
        terminated: (T, N); the episode ended in a final state.
        truncated: (T, N); the episode was cut off.
        valid: (T, N); False where a step was only a reset.
        final_observation: (K, features), the successor of each truncated step.
        final_at: (K,) where that step is, as t * N + n.
        last_observation: (N, features), after the last step.
        sources: who played, and how many of the N environments: a worker's environments go on from one
            fragment to the next.

    """

    observation: Floats
    action: NDArray[Any]
    log_probability: Floats
    reward: Floats
    terminated: Flags
    truncated: Flags
    valid: Flags
    final_observation: Floats
    final_at: NDArray[np.int64]
    last_observation: Floats
    sources: tuple[tuple[str, int], ...]

    @property
    def steps(self) -> int:
        """Agent steps in it."""
        return int(np.count_nonzero(self.valid))


def check(fragment: Fragment, spec: EnvironmentSpec, steps: int) -> None:
    """Refuses a fragment that is whole and yet not of this job.

    Args:
        fragment: a rollout.
        spec: the spaces of the job.
        steps: T.

    Raises:
        CorruptFragment: its shapes or values do not fit.

    """
    columns = fragment.columns
    if columns["valid"].shape[0] != steps:
        raise CorruptFragment(f"{columns['valid'].shape[0]} time steps instead of {steps}")
    for name, space in (("observation", spec.observation), ("action", spec.action)):
        column = columns[name]
        if column.shape[2:] != space.shape or column.dtype != space.dtype:
            raise CorruptFragment(
                f"column {name} is {column.dtype} {column.shape[2:]} instead of {space.dtype} {space.shape}"
            )
    for name in ("observation", "final_observation", "last_observation"):
        _check_values(name, columns[name], spec.observation, spec.observation.start)
    # Actions are kept as a policy counts them, from 0.
    _check_values("action", columns["action"], spec.action, 0)


def _check_values(name: str, column: NDArray[Any], space: SpaceSpec, start: int | tuple[int, ...]) -> None:
    """Refuses what would index past the end of a network's inputs or outputs."""
    if space.kind == "Box":
        return
    counts = np.array(2 if space.kind == "MultiBinary" else space.nvec or space.n, np.int64)
    element = column.reshape(-1, space.size).astype(np.int64) - start
    if np.any((element < 0) | (element >= counts)):
        raise CorruptFragment(f"column {name} holds values outside of its {space.kind} space")


def join(fragments: Sequence[Fragment], spec: EnvironmentSpec) -> Batch:
    """Lays fragments side by side, in an order that does not depend on how they arrived."""
    ordered = sorted(fragments, key=lambda f: (f.header.worker, f.header.incarnation, f.header.sequence))
    columns = [fragment.columns for fragment in ordered]
    widths = [part["valid"].shape[1] for part in columns]
    total, offset, final_at = sum(widths), 0, [np.empty(0, np.int64)]
    for part, width in zip(columns, widths, strict=True):
        t, n = np.nonzero(part["truncated"])
        final_at.append(t * total + n + offset)
        offset += width

    def side_by_side(name: str) -> NDArray[Any]:
        return np.concatenate([part[name] for part in columns], axis=1)

    def flat(name: str, axis: int) -> Floats:
        parts = [flatten_observation(spec.observation, part[name]) for part in columns]
        return np.ascontiguousarray(np.concatenate(parts, axis=axis))

    kind = np.float32 if spec.action.kind == "Box" else np.int64
    action = side_by_side("action")
    return Batch(
        observation=flat("observation", 1),
        action=action.reshape(*action.shape[:2], spec.action.size).astype(kind),
        log_probability=side_by_side("log_probability"),
        reward=side_by_side("reward"),
        terminated=side_by_side("terminated"),
        truncated=side_by_side("truncated"),
        valid=side_by_side("valid"),
        final_observation=flat("final_observation", 0),
        final_at=np.concatenate(final_at),
        last_observation=flat("last_observation", 0),
        sources=tuple(
            (fragment.header.incarnation, width) for fragment, width in zip(ordered, widths, strict=True)
        ),
    )
