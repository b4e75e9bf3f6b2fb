"""Answers that are known already: to deterministic questions that a policy without memory was asked."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ratchet_inference.chain import Batch, Outcome, Step, answer
from ratchet_inference.stats import Tally


class _Known(NamedTuple):
    action: Any
    log_probability: float
    value: float | None


class Remembering:
    """As `chain.answer`, but asks a policy nothing twice.

    Args:
        most: answers that are kept; those not needed for longest go first.

    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[tuple[str, bytes], _Known] = OrderedDict()
        self.hits = 0

    def answer(
        self, first: Step, others: Sequence[Step], batch: Batch, tally: Tally, most: int, until: float
    ) -> Outcome:
        """Answers each row; only what the policy itself answered is kept."""
        if batch.states is not None or not batch.deterministic.all():
            return answer(first, others, batch, tally, most, until)
        digest, known = first.policy.digest, self._known
        rows = len(batch.observations)
        keys = [(digest, _key(batch, row)) for row in range(rows)]
        missing = [row for row, key in enumerate(keys) if key not in known]
        self.hits += rows - len(missing)
        steps: list[str | None] = [None] * rows
        digests = [digest] * rows
        answers: list[_Known | None] = [known.get(key) for key in keys]
        for key in keys:
            if key in known:
                known.move_to_end(key)
        if missing:
            found = answer(first, others, batch.rows(np.array(missing, np.intp)), tally, most, until)
            for i, row in enumerate(missing):
                value = found.values[i] if found.values else None
                one = answers[row] = _Known(found.actions[i], found.log_probabilities[i], value)
                steps[row], digests[row] = found.steps[i], found.digests[i]
                if found.steps[i] is None:
                    known[keys[row]] = one
            while len(known) > self._most:
                known.popitem(last=False)
        whole = [one for one in answers if one is not None]
        values = [one.value for one in whole]
        return Outcome(
            np.array([one.action for one in whole], first.policy.spec.action.dtype),
            [one.log_probability for one in whole],
            None if all(value is None for value in values) else values,
            digests,
            steps,
            None,
        )


def _key(batch: Batch, row: int) -> bytes:
    mask = b"" if batch.masks is None else batch.masks[row].tobytes()
    return batch.observations[row].tobytes() + batch.temperature[row].tobytes() + mask
