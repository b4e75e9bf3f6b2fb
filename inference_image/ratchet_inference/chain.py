"""From observations to answers that are always valid: the policy, else another one, else the scripted action.

Each answer is checked: finite, in the action space, allowed by its mask. Rows that fail go on to the next
step, and both the failure and the step are counted.
"""

import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ratchet.policies.serving import safe_action
from ratchet_inference.asking import SCRIPTED
from ratchet_inference.fitting import Fitting
from ratchet_inference.seams import Bools, Decided, Floats, Policy
from ratchet_inference.stats import Tally

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """N observations that one policy is asked together; the fields are those of `Policy.decide`."""

    observations: NDArray[Any]
    masks: Bools | None
    deterministic: Bools
    temperature: Floats
    seeds: Sequence[int | None]
    states: Floats | None

    def rows(self, index: NDArray[np.intp]) -> "Batch":
        """Some of the rows."""
        return Batch(
            self.observations[index],
            None if self.masks is None else self.masks[index],
            self.deterministic[index],
            self.temperature[index],
            [self.seeds[i] for i in index],
            None if self.states is None else self.states[index],
        )


class Step(NamedTuple):
    """A policy that may be asked. `name` is the fallback that it is, None for the policy of first choice."""

    name: str | None
    policy: Policy
    fitting: Fitting


class Outcome(NamedTuple):
    """Columns of N answers.

    Attributes:
        steps: who answered instead of the policy, None where it did.
        states: to be remembered, where the policy has a memory.

    """

    actions: NDArray[Any]
    log_probabilities: list[float]
    values: list[float | None] | None
    digests: list[str]
    steps: list[str | None]
    states: Floats | None


def answer(
    first: Step, others: Sequence[Step], batch: Batch, tally: Tally, most: int, until: float
) -> Outcome:
    """Answers each row; raises nothing.

    Args:
        first: the policy to be asked.
        others: to be asked next where it fails, in this order.
        batch: fits the policy's spec.
        tally: of the policy, for failures and fallbacks.
        most: rows that are asked at once.
        until: of perf_counter; later none of the others is asked.

    """
    rows = len(batch.observations)
    if rows > most:
        numbers = np.arange(rows)
        parts = [
            answer(first, others, batch.rows(numbers[start : start + most]), tally, most, until)
            for start in range(0, rows, most)
        ]
        return _joined(parts)
    decided, failed = _attempt(first, batch, tally)
    if decided is None or failed:
        return _patch(first.policy, others, batch, tally, decided, failed, until)
    value = decided.value
    return Outcome(
        decided.action,
        decided.log_probability.tolist(),
        None if value is None else [*value.tolist()],
        [first.policy.digest] * rows,
        [None] * rows,
        decided.states,
    )


def _joined(parts: list[Outcome]) -> Outcome:
    values: list[float | None] = []
    for part in parts:
        values += part.values or [None] * len(part.digests)
    states = [part.states for part in parts if part.states is not None]
    return Outcome(
        np.concatenate([part.actions for part in parts]),
        [x for part in parts for x in part.log_probabilities],
        None if all(part.values is None for part in parts) else values,
        [digest for part in parts for digest in part.digests],
        [step for part in parts for step in part.steps],
        np.concatenate(states) if states else None,
    )


def _patch(
    policy: Policy,
    others: Sequence[Step],
    batch: Batch,
    tally: Tally,
    decided: Decided | None,
    failed: dict[int, str],
    until: float,
) -> Outcome:
    """The rows that failed, answered by the next steps."""
    rows = len(batch.observations)
    space = policy.spec.action
    actions = np.zeros((rows, *space.shape), space.dtype)
    log_probabilities = [0.0] * rows
    values: list[float | None] = [None] * rows
    digests = [policy.digest] * rows
    steps: list[str | None] = [None] * rows
    states = batch.states

    def take(
        found: Decided, where: Sequence[int], good: Sequence[int], digest: str, step: str | None
    ) -> None:
        for i in good:
            row = where[i]
            actions[row] = found.action[i]
            log_probabilities[row] = float(found.log_probability[i])
            values[row] = None if found.value is None else float(found.value[i])
            digests[row], steps[row] = digest, step
            if step:
                tally.fallbacks[step, failed[row]] += 1

    if decided is not None:
        good = [row for row in range(rows) if row not in failed]
        take(decided, range(rows), good, policy.digest, None)
        if states is not None and decided.states is not None:
            states = states.copy()
            states[good] = decided.states[good]
    missing: list[int] = sorted(failed)
    alone = batch._replace(states=None)  # one policy's memory means nothing to another
    for step in others:
        other = step.policy.spec
        if not missing or other.action != space or other.observation != policy.spec.observation:
            continue
        if perf_counter() > until:
            break
        found, its = _attempt(step, alone.rows(np.array(missing, np.intp)), None)
        if found is not None:
            take(
                found,
                missing,
                [i for i in range(len(missing)) if i not in its],
                step.policy.digest,
                step.name,
            )
            missing = [missing[i] for i in its]
    for row in missing:
        # It is sure to be taken, so its probability is 1.
        actions[row] = safe_action(policy.spec, None if batch.masks is None else batch.masks[row])
        digests[row] = steps[row] = SCRIPTED
        tally.fallbacks[SCRIPTED, failed[row]] += 1
    return Outcome(actions, log_probabilities, values, digests, steps, states)


def _attempt(step: Step, batch: Batch, tally: Tally | None) -> tuple[Decided | None, dict[int, str]]:
    """What the policy says, and which rows of it are of no use, with the reason."""
    rows = len(batch.observations)
    policy = step.policy
    try:
        decided = policy.decide(
            batch.observations,
            masks=batch.masks,
            deterministic=batch.deterministic,
            temperature=batch.temperature,
            seeds=batch.seeds,
            states=batch.states,
        )
        if decided.action.shape != (rows, *policy.spec.action.shape) or len(decided.log_probability) != rows:
            raise ValueError(f"actions of shape {decided.action.shape}")
    except Exception:
        # However a policy fails, the client gets a valid action. Said once; counted always.
        if tally and not tally.errors["policy-error"]:
            log.exception("the policy failed", extra={"fields": {"digest": policy.digest}})
        if tally:
            tally.errors["policy-error"] += rows
        return None, dict.fromkeys(range(rows), "policy-error")
    failed = step.fitting.failures(decided, batch.masks)
    if tally and failed:
        for reason in failed.values():
            tally.errors[reason] += 1
            tally.nan_answers += reason == "nan"
            tally.mask_violations += reason == "mask-violation"
    return decided, failed
