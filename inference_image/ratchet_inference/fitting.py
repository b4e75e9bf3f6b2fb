"""What fits a policy: observations and masks as arrays, and whether actions are in its space. Pure."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import chain, pairwise
from math import isfinite
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from ratchet.policies import PolicySpec, SpaceSpec
from ratchet_inference.asking import Question
from ratchet_inference.problems import Problem, bad_request
from ratchet_inference.seams import Bools, Decided

_NUMBERS = frozenset({int, float, bool})
_BITS = (False, True)


def numbers(nested: list[Any]) -> NDArray[Any] | None:
    """A JSON list as an array; None if it is ragged or holds anything but numbers and booleans.

    numpy never sees text, of which it would give every element the room of the longest.
    """
    leaves = np.array(nested, np.object_)
    if not _NUMBERS.issuperset(map(type, leaves.reshape(-1))):
        return None
    array = np.array(nested)
    return array if array.dtype.kind in "fiub" else None


def first_outputs(space: SpaceSpec) -> NDArray[np.intp] | None:
    """Where each component's values begin among the outputs; None where outputs are no values."""
    if space.kind == "Discrete":
        return np.zeros(1, np.intp)
    if space.kind != "MultiDiscrete":
        return None
    return np.cumsum((0, *(space.nvec or ())[:-1]), dtype=np.intp)


class Bounds:
    """Smallest and largest value of each component of a space; None where there is none."""

    def __init__(self, space: SpaceSpec) -> None:
        dtype = np.dtype(space.dtype)
        self.low: NDArray[Any] | None = None
        self.high: NDArray[Any] | None = None
        if space.kind == "MultiBinary":
            self.low, self.high = np.zeros((), np.int64), np.ones((), np.int64)
        elif space.kind == "Box":
            if space.low is not None and space.high is not None:
                shape = space.shape
                self.low, self.high = (
                    np.array(bound, dtype).reshape(shape if isinstance(bound, tuple) else ())
                    for bound in (space.low, space.high)
                )
        else:
            start = np.array(space.start, np.int64)
            counts = np.array(space.n if space.nvec is None else space.nvec, np.int64).reshape(space.shape)
            self.low = np.broadcast_to(start.reshape(space.shape if start.ndim else ()), space.shape)
            self.high = self.low + counts - 1


class Fitting:
    """The spaces of one policy, made ready for looking at many requests.

    Attributes:
        spaces: SHA-256 over both, the same for policies that can take each other's place.

    """

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec
        both = [space.model_dump(mode="json") for space in (spec.observation, spec.action)]
        self.spaces = sha256(orjson.dumps(both, option=orjson.OPT_SORT_KEYS)).hexdigest()
        observation, self._action = spec.observation, spec.action
        self._shape = observation.shape
        self._dtype = np.dtype(observation.dtype)
        self._real = observation.kind == "Box" and self._dtype.kind == "f"
        if observation.kind == "Box":
            # Environments leave their own bounds; the type's are those that cannot be left.
            kind = self._dtype if self._dtype.kind in "iu" else np.dtype(np.uint8)
            self._low: Any = np.array(np.iinfo(kind).min)
            self._high: Any = np.array(np.iinfo(kind).max)
        else:
            bounds = Bounds(observation)
            self._low, self._high = bounds.low, bounds.high
        self._outputs = spec.action.outputs
        self._everything = [True] * self._outputs
        self._firsts = first_outputs(spec.action)
        # Of each component, of which something must be allowed.
        firsts: list[int] = [] if self._firsts is None else self._firsts.tolist()
        self._parts = [slice(first, end) for first, end in pairwise([*firsts, self._outputs])]
        bounds = Bounds(spec.action)
        self._lowest: Any = bounds.low
        self._highest: Any = bounds.high
        self._one = (int(self._lowest), int(self._highest)) if spec.action.kind == "Discrete" else None

    def fit(self, questions: Sequence[Question]) -> list[Question]:
        """Gives every question its array and its masks; the questions that fit. The others get a `problem`.

        One look at all of them together suffices nearly always; when it finds something, each is looked at
        alone.
        """
        if len(questions) > 1:
            try:
                rows = [row for question in questions for row in question.observations]
                together = self.observations(rows)
                masked = [row for question in questions if question.masks for row in question.masks]
                masks = self.masks(masked) if masked else None
            except Problem:
                pass
            else:
                first = first_mask = 0
                for question in questions:
                    last = first + len(question.observations)
                    question.array = together[first:last]
                    if masks is not None and question.masks:
                        question.mask_rows = masks[first_mask : first_mask + last - first]
                        first_mask += last - first
                    first = last
                return list(questions)
        fitting: list[Question] = []
        for question in questions:
            try:
                question.array = self.observations(question.observations, single=question.single)
                if question.masks is not None:
                    question.mask_rows = self.masks(question.masks, single=question.single)
                fitting.append(question)
            except Problem as problem:
                question.problem = problem
        return fitting

    def observations(self, rows: list[Any], *, single: bool = True) -> NDArray[Any]:
        """(N, *shape) of the space's dtype.

        Raises:
            Problem: a row has another shape, holds no numbers, or numbers that the space does not have.

        """
        try:
            leaves: Iterable[Any] = rows
            for _ in self._shape:
                leaves = chain.from_iterable(leaves)
            # Before numpy sees it: text takes the room of the longest in every element, and "1" is no number.
            if not _NUMBERS.issuperset(map(type, leaves)):
                raise self._wrong_shape(rows, single)
            with np.errstate(over="ignore"):
                array = np.array(rows, self._dtype if self._real else None)
        except (TypeError, ValueError, OverflowError):
            raise self._wrong_shape(rows, single) from None
        if array.shape[1:] != self._shape or array.dtype.kind not in "fiub":
            raise self._wrong_shape(rows, single)
        if self._real:
            # A sum is finite only if each number is; the other way round it may be too large.
            if not isfinite(np.add.reduce(array, axis=None)) and not np.isfinite(array).all():
                words = f"the observation holds a number that {self._dtype} cannot hold"
                raise bad_request("not-finite", words, None if single else _first_bad(np.isfinite(array)))
            return array
        inside = (array >= self._low) & (array <= self._high) & (array == np.floor(array))
        if not inside.all():
            span = f"{self._low.tolist()} to {self._high.tolist()}"
            words = f"the observation must hold whole numbers from {span}"
            raise bad_request("out-of-range", words, None if single else _first_bad(inside))
        return array.astype(self._dtype, copy=False)

    def masks(self, rows: list[Any], *, single: bool = True) -> Bools:
        """(N, outputs), true where something is allowed; a row may be None, which allows everything.

        Raises:
            Problem: a mask does not fit the space, or allows nothing.

        """
        if self._action.kind == "Box":
            raise bad_request("bad-mask", "a policy with continuous actions takes no mask: leave it out")
        outputs = self._outputs
        filled: list[list[Any]] = []
        for number, row in enumerate(rows):
            entries = cast("list[Any]", row) if isinstance(row, list) else []
            if row is None:
                entries = self._everything
            # 0 and 1 are as good as false and true; nothing else is.
            elif len(entries) != outputs or not all(map(_BITS.__contains__, entries)):
                words = f"a mask is a list of {outputs} entries, true where an action is allowed"
                raise bad_request("bad-mask", words, None if single else number)
            for part in self._parts:
                if not any(entries[part]):
                    words = "the mask allows nothing: at least one action must be allowed"
                    if self._action.kind == "MultiDiscrete":
                        words += " in each component"
                    raise bad_request("empty-mask", words, None if single else number)
            filled.append(entries)
        return np.array(filled, np.bool_)

    def failures(self, decided: Decided, masks: Bools | None) -> dict[int, str]:
        """Which of N answers are of no use, with the reason; empty nearly always."""
        actions, log_probability, value = decided.action, decided.log_probability, decided.value
        if len(actions) == 1 and self._one:
            # The most frequent case in plain Python: numpy's calls would take ten times as long.
            low, high = self._one
            action = int(actions[0])
            if (
                low <= action <= high
                and (masks is None or masks[0, action - low])
                and isfinite(log_probability[0])
                and (value is None or isfinite(value[0]))
            ):
                return {}
        finite = np.isfinite(log_probability)
        if value is not None:
            finite &= np.isfinite(value)
        inside, allowed = self.valid(actions, masks)
        if (finite & allowed).all():
            return {}
        return {
            row: "nan" if not finite[row] else "mask-violation" if inside[row] else "invalid-action"
            for row in np.flatnonzero(~(finite & allowed)).tolist()
        }

    def valid(self, actions: NDArray[Any], masks: Bools | None) -> tuple[Bools, Bools]:
        """Which of N actions are in the space, and which of those keep to their masks: (N,) each."""
        within: Bools = np.isfinite(actions)
        if self._lowest is not None:
            within = within & (actions >= self._lowest) & (actions <= self._highest)
        good = _every(within)
        if masks is None or self._action.kind == "Box":
            return good, good
        index = (actions - self._lowest).reshape(len(actions), -1).astype(np.intp)
        index[~good] = 0
        if self._firsts is None:
            return good, good & _every(masks | (index == 0))
        return good, good & _every(masks[np.arange(len(index))[:, None], self._firsts + index])

    def _wrong_shape(self, rows: list[Any], single: bool) -> Problem:
        """Says which row is at fault, and what it must be."""
        wanted = f"numbers of shape {list(self._shape)}" if self._shape else "a number"
        for number, row in enumerate(rows):
            where = None if single else number
            leaves = np.array(row, np.object_)
            kinds = set(map(type, leaves.reshape(-1)))
            if list in kinds:
                words = f"the observation has lists of unequal lengths: send {wanted}"
                return bad_request("wrong-shape", words, where)
            if not kinds <= _NUMBERS:
                words = f"the observation must hold only numbers: send {wanted}"
                return bad_request("wrong-type", words, where)
            if leaves.shape != self._shape:
                words = f"the observation has shape {list(leaves.shape)}: send {wanted}"
                return bad_request("wrong-shape", words, where)
        return bad_request("wrong-shape", f"send {wanted} for each observation")


def _every(fine: Any) -> Bools:
    """Rows of which each component is fine."""
    return np.logical_and.reduce(np.reshape(fine, (len(fine), -1)), axis=1)


def _first_bad(fine: Any) -> int:
    return int(_every(fine).argmin())
