"""Whether another policy server's answer can be given to a client. Pure."""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ratchet_inference.asking import Question, read_json
from ratchet_inference.fitting import Fitting
from ratchet_inference.hop import HopError


def read_reply(question: Question, body: bytes, fitting: Fitting, digest: str | None) -> None:
    """Fills a question from another server's answer.

    Args:
        question: has the shape and the masks; takes the columns.
        body: of the answer.
        fitting: of this server's policy, whose action space is the one that counts.
        digest: that it must have been answered with, None for any.

    Raises:
        HopError: the answer is not one, or not valid under the masks, or a fallback of the other side.

    """
    rows, space = len(question), fitting.spec.action
    nothing: list[Any] = [None] * rows
    try:
        answer = cast("dict[str, Any]", read_json(body))
        if question.single:
            names = ("action", "logProbability", "digest", "fallback", "value", "t")
            columns = [[answer[name]] for name in names]
        else:
            names = ("actions", "logProbabilities", "digests", "fallbacks", "values", "ts")
            columns = [nothing if answer[name] is None else answer[name] for name in names]
        actions, log_probabilities, digests, fallbacks, values, steps = columns
        array = _numbers(actions, (rows, *space.shape), whole=np.dtype(space.dtype).kind != "f")
        _numbers(log_probabilities, (rows,))
        known_values, known_steps = values != nothing, steps != nothing
        if known_values:
            _numbers([0.0 if one is None else one for one in values], (rows,))
        if known_steps and not (_numbers(steps, (rows,), whole=True) >= 0).all():
            raise HopError("canary-invalid")
        if not (_each(digests, rows, str) and _each(fallbacks, rows, str | None)):
            raise HopError("canary-invalid")
        if fallbacks != nothing:
            raise HopError("canary-fallback")
        if digest is not None and any(one != digest for one in digests):
            raise HopError("canary-digest")
        inside, allowed = fitting.valid(array, question.mask_rows)
    except HopError:
        raise
    except Exception as error:
        # Whatever another server sends, the client is answered.
        raise HopError("canary-invalid") from error
    if not allowed.all():
        raise HopError("canary-mask-violation" if inside.all() else "canary-invalid")
    question.actions = actions
    question.log_probabilities = log_probabilities
    question.digests = digests
    question.fallbacks = nothing
    question.values = values if known_values else None
    question.steps = steps if known_steps else None


def _numbers(column: Any, shape: tuple[int, ...], *, whole: bool = False) -> NDArray[Any]:
    """A column of JSON numbers, which are finite, and which true and false are none of."""
    found = np.array(column, object)
    kinds: set[type] = {int} if whole else {int, float}
    if found.shape != shape or not {type(x) for x in found.ravel()} <= kinds:
        raise HopError("canary-invalid")
    return found.astype(np.int64 if whole else np.float64)


def _each(column: Any, rows: int, kind: Any) -> bool:
    if not isinstance(column, list):
        return False
    entries = cast("list[Any]", column)
    return len(entries) == rows and all(isinstance(entry, kind) for entry in entries)
