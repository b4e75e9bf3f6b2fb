"""What a client may ask: the body of an act request as a value, and its answer as it grows. Pure."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from operator import itemgetter
from typing import Any, cast
from zlib import crc32

import orjson
from numpy.typing import NDArray

from ratchet_inference.problems import Problem, bad_request
from ratchet_inference.seams import Bools

_CHOICES = frozenset({"deterministic", "temperature", "seed"})
_ONE = _CHOICES | {"observation", "episode", "policy", "id", "mask"}
_MANY = _CHOICES | {"observations", "episodes", "policies", "ids", "masks", "seeds"}
_PLURALS = {"policy": "policies"}
LONGEST_NAME = 256
SCRIPTED = "scripted"
STABLE, CANARY, SHADOW = "stable", "canary", "shadow"
_HUGE_SEED = 1 << 63


class Question:
    """One request for actions, of one observation or of a batch, and its answer as it grows.

    The answer's columns hold one entry for each observation; `done` is called once, when they are all there
    or `problem` says why not.
    """

    __slots__ = (
        "actions",
        "arms",
        "array",
        "deterministic",
        "digests",
        "done",
        "episodes",
        "fallbacks",
        "given",
        "hop",
        "ids",
        "log_probabilities",
        "mask_rows",
        "masks",
        "observations",
        "policies",
        "problem",
        "received",
        "seeds",
        "single",
        "steps",
        "temperature",
        "values",
    )

    def __init__(self, observations: list[Any], *, single: bool) -> None:
        self.observations = observations
        self.single = single
        self.episodes: list[str] | None = None
        self.policies: Sequence[str | None] | None = None  # digest of the one that each episode runs on
        self.masks: list[Any] | None = None
        self.deterministic: bool | None = None
        self.temperature = 1.0
        self.seeds: list[int] | None = None
        self.given = STABLE  # the arm that it was given to before it came here; another one is never sent on
        self.hop = False  # another policy server asks, and records what it answers its client with
        self.received = 0.0  # of perf_counter
        self.done: Callable[[Question], None] = _forget

        self.array: NDArray[Any] | None = None
        self.mask_rows: Bools | None = None
        self.problem: Problem | None = None
        self.ids: list[str] | None = None
        self.actions: list[Any] = []
        self.log_probabilities: list[float] = []
        self.values: list[float | None] | None = None
        self.digests: list[str] = []
        self.arms: list[str] = []
        self.fallbacks: list[str | None] = []
        self.steps: list[int] | None = None

    def __len__(self) -> int:
        return len(self.observations)

    def end(self) -> None:
        """Tells whoever asked that the answer or the `problem` is there; the second time nobody."""
        done, self.done = self.done, _forget
        done(self)

    def answer(self) -> bytes:
        """The body of the answer."""
        episodes, steps, values, ids = self.episodes, self.steps, self.values, self.ids
        if self.single:
            return orjson.dumps(
                {
                    "id": ids[0] if ids else None,
                    "action": self.actions[0],
                    "logProbability": self.log_probabilities[0],
                    "value": values[0] if values else None,
                    "digest": self.digests[0],
                    "arm": self.arms[0],
                    "fallback": self.fallbacks[0],
                    "episode": episodes[0] if episodes else None,
                    "t": steps[0] if steps else None,
                }
            )
        return orjson.dumps(
            {
                "ids": ids,
                "actions": self.actions,
                "logProbabilities": self.log_probabilities,
                "values": values,
                "digests": self.digests,
                "arms": self.arms,
                "fallbacks": self.fallbacks,
                "episodes": episodes,
                "ts": steps,
            }
        )

    def came(self, headers: Mapping[bytes, bytes]) -> None:
        """Notes who sent it: a client, another policy server, or a route that split before."""
        arm = headers.get(b"ratchet-arm")
        self.hop = b"ratchet-hop" in headers or arm == b"shadow"
        if arm == b"shadow":
            self.given = SHADOW
            # Should the episode itself come here one day, its memory is another.
            self.episodes = self.episodes and [f"shadow\0{episode}" for episode in self.episodes]
        elif self.hop or arm == b"canary":
            self.given = CANARY

    def draw_by(self, body: bytes) -> None:
        """Lets a request, which has an id, decide its own randomness where it has no seed.

        Asked again because its answer was lost, it then gets the same action from any server of the policy.
        """
        if self.seeds is None:
            first = crc32(body)
            self.seeds = list(range(first, first + len(self.observations)))

    def body(self) -> bytes:
        """The request again, for another server."""
        body: dict[str, Any] = {"temperature": self.temperature}
        if self.deterministic is not None:
            body["deterministic"] = self.deterministic
        columns = {
            "observation": self.observations,
            "episode": self.episodes,
            "policy": self.policies,
            "id": self.ids,
            "mask": self.masks,
            "seed": self.seeds,
        }
        for name, column in columns.items():
            if column is not None:
                body |= {name: column[0]} if self.single else {_PLURALS.get(name, f"{name}s"): column}
        return orjson.dumps(body)

    def part(self, rows: list[int]) -> "Question":
        """Some of the observations, as a batch of their own."""
        part = Question([self.observations[row] for row in rows], single=False)
        part.hop, part.given, part.received = self.hop, self.given, self.received
        part.deterministic, part.temperature = self.deterministic, self.temperature
        part.seeds = self.seeds and [self.seeds[row] for row in rows]
        part.episodes = self.episodes and [self.episodes[row] for row in rows]
        part.policies = self.policies and [self.policies[row] for row in rows]
        part.ids = self.ids and [self.ids[row] for row in rows]
        part.masks = self.masks and [self.masks[row] for row in rows]
        part.arms = self.arms and [self.arms[row] for row in rows]
        part.fallbacks = self.fallbacks and [self.fallbacks[row] for row in rows]
        if self.array is not None:
            part.array = self.array[rows]
        if self.mask_rows is not None:
            part.mask_rows = self.mask_rows[rows]
        return part

    def split(self, *rows: list[int]) -> "list[Question]":
        """Parts that hold every row once; this question ends with the last of them."""
        parts = [(some, self.part(some)) for some in rows]
        missing = len(parts)

        def done(_part: Question) -> None:
            nonlocal missing
            missing -= 1
            if not missing:
                self.join(parts)
                self.end()

        for _, part in parts:
            part.done = done
        return [part for _, part in parts]

    def join(self, parts: "Sequence[tuple[list[int], Question]]") -> None:
        """Takes the answers of parts that hold every row once, with the numbers of their rows."""
        for rows, part in parts:
            if part.problem:
                self.problem = part.problem.of_row(rows)
                return
        order = [row for rows, _ in parts for row in rows]

        def column(name: str) -> list[Any] | None:
            found: list[Any] = []
            for rows, part in parts:
                found += getattr(part, name) or [None] * len(rows)
            placed = sorted(zip(order, found, strict=True), key=itemgetter(0))
            return None if all(x is None for x in found) else [x for _, x in placed]

        self.ids, self.values, self.steps = column("ids"), column("values"), column("steps")
        self.actions, self.log_probabilities = column("actions") or [], column("log_probabilities") or []
        self.digests, self.arms = column("digests") or [], column("arms") or []
        self.fallbacks = column("fallbacks") or [None] * len(order)


def _forget(_question: Question) -> None: ...


def parse(body: bytes, most: int) -> Question:
    """The body of `POST /v1/act`.

    Args:
        body: JSON in UTF-8.
        most: observations in one request.

    Raises:
        Problem: it is not JSON, or its fields are not what they must be. Shapes and numbers are looked at
            later, by `fitting`, with the policy that answers.

    """
    question = from_json(read_json(body), most)
    if question.ids:
        question.draw_by(body)
    return question


def read_json(body: bytes) -> Any:
    """JSON as RFC 8259 has it: UTF-8, no NaN, no Infinity, nested at most 1,024 deep.

    Raises:
        Problem: it is something else.

    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request("bad-json", f"the body is not JSON: {error}") from error


def from_json(value: Any, most: int) -> Question:
    """As `parse`, of a JSON value."""
    if not isinstance(value, dict):
        raise bad_request("bad-body", 'send a JSON object such as {"observation": [0.1, 0.2]}')
    fields = cast("dict[str, Any]", value)
    if "observation" in fields:
        question = Question([fields["observation"]], single=True)
        known, s = _ONE, ""
    elif "observations" in fields:
        rows = fields["observations"]
        if not isinstance(rows, list) or not rows:
            raise bad_request("bad-field", "observations must be a list with at least one observation")
        question = Question(cast("list[Any]", rows), single=False)
        known, s = _MANY, "s"
        if len(question) > most:
            words = f"{len(question)} observations in one request: send at most {most}"
            raise Problem(413, "large-batch", words)
    else:
        raise bad_request("no-observation", "send observation (one) or observations (a list of them)")
    if len(fields) == 1:
        return question
    if not fields.keys() <= known:
        unknown = ", ".join(sorted(fields.keys() - known))
        others = ", ".join(sorted(known - {"observation" + s}))
        words = f"unknown field {unknown[:200]}: beside observation{s}, send {others}"
        raise bad_request("unknown-field", words)

    question.episodes = _names(fields, question, "episode")
    question.policies = _policies(fields, question)
    question.ids = _names(fields, question, "id")
    masks = fields.get("mask" + s)
    if masks is not None:
        question.masks = [masks] if question.single else _column(masks, len(question), "masks")
    deterministic = fields.get("deterministic")
    if deterministic is not None:
        if not isinstance(deterministic, bool):
            raise bad_request("bad-field", "deterministic must be true or false")
        question.deterministic = deterministic
    temperature = fields.get("temperature")
    if temperature is not None:
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
            raise bad_request("bad-field", "temperature must be a number")
        if not (isfinite(temperature) and 1e-3 <= temperature <= 1e3):
            raise bad_request("bad-field", "temperature must lie between 0.001 and 1000")
        question.temperature = float(temperature)
    seed = fields.get("seed")
    if seed is not None:
        if not _is_seed(seed, _HUGE_SEED):
            raise bad_request("bad-field", "seed must be an integer from 0 to 2^63 - 1")
        question.seeds = list(range(seed, seed + len(question)))
    elif fields.get("seeds") is not None:
        question.seeds = _column(fields["seeds"], len(question), "seeds")
        if not all(_is_seed(one, 2 * _HUGE_SEED) for one in question.seeds):
            raise bad_request("bad-field", "seeds must be integers from 0 to 2^64 - 1")
    return question


def _is_seed(value: Any, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end


def _names(fields: dict[str, Any], question: Question, name: str) -> list[str] | None:
    if question.single:
        value = fields.get(name)
        if value is None:
            return None
        names = [value]
    else:
        name += "s"
        value = fields.get(name)
        if value is None:
            return None
        names = _column(value, len(question), name)
    for one in names:
        _check_name(one, name)
    if len(names) > 1 and len(set(names)) != len(names):
        raise bad_request("bad-field", f"{name} holds a name twice: one observation of an episode at a time")
    return cast("list[str]", names)


def _policies(fields: dict[str, Any], question: Question) -> Sequence[str | None] | None:
    """Digests, of which any may be null: an episode that begins has none, and one policy may have several."""
    name = "policy" if question.single else "policies"
    value = fields.get(name)
    if value is None:
        return None
    digests = [value] if question.single else _column(value, len(question), name)
    for one in digests:
        if one is not None:
            _check_name(one, name)
    return cast("list[str | None]", digests)


def _check_name(value: Any, field: str) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME:
        raise bad_request("bad-field", f"{field} must be text of 1 to {LONGEST_NAME} characters")


def _column(value: Any, rows: int, name: str) -> list[Any]:
    if not isinstance(value, list) or len(cast("list[Any]", value)) != rows:
        raise bad_request("bad-field", f"{name} must be a list of {rows}, one for each observation")
    return cast("list[Any]", value)
