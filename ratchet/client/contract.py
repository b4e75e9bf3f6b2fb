"""What is asked and answered: JSON of the policy server's HTTP API to values and back. Pure."""

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from math import isfinite
from typing import Any, NamedTuple, cast

from ratchet.client.errors import BadAnswer, Failed, Overloaded, Refused
from ratchet.client.http import Answer

CLIENT = "client"


class Action(NamedTuple):
    """What to do.

    Attributes:
        action: a number for a Discrete space, else nested lists; as the environment takes it.
        log_probability: of the action; NaN where the client itself answered.
        value: the policy's estimate of the return, if it has one.
        digest: of the policy; "" where none decided.
        arm: such as `stable` or `canary`.
        fallback: None for the policy itself, `client` for the client's own safe action, else the server's
            word for the step of its chain that answered.
        id: of this decision, to send its reward with.
        t: steps of the episode before this one that the server has seen, None without an episode. Of a
            recurrent policy 0 in the midst of an episode says that its memory was lost.

    """

    action: Any
    log_probability: float
    value: float | None
    digest: str
    arm: str
    fallback: str | None
    id: str
    t: int | None = None


# A safe action, or what makes one from an observation and its mask.
Fallback = Any | Callable[[Any, Any], Any]


class Names:
    """Ids for decisions: unique among all clients, also after a fork."""

    def __init__(self) -> None:
        self._start = secrets.token_hex(8)
        self._numbers = count()

    def next(self) -> str:
        """A new one."""
        return f"{self._start}-{os.getpid():x}-{next(self._numbers):x}"


def act_body(
    observation: Any,
    id_: str,
    episode: str | None,
    policy: str | None,
    mask: Any,
    deterministic: bool | None,
    temperature: float | None,
    seed: int | None,
) -> bytes:
    """The request for one action; `policy` is the digest of the one that the episode runs on.

    Raises:
        Refused: the observation is no numbers, or holds one that JSON has not.

    """
    body: dict[str, Any] = {"observation": observation, "id": id_}
    if episode is not None:
        body["episode"] = episode
    if policy is not None:
        body["policy"] = policy
    if mask is not None:
        body["mask"] = mask
    return encode(_with_choices(body, deterministic, temperature, seed))


def batch_body(
    observations: Any,
    ids: Sequence[str],
    episodes: Sequence[str] | None,
    policies: Sequence[str | None],
    masks: Any,
    deterministic: bool | None,
    temperature: float | None,
    seed: int | None,
) -> bytes:
    """The request for several actions; raises as `act_body`."""
    body: dict[str, Any] = {"observations": observations, "ids": ids}
    if episodes is not None:
        body["episodes"] = episodes
    if any(policies):
        body["policies"] = policies
    if masks is not None:
        body["masks"] = masks
    return encode(_with_choices(body, deterministic, temperature, seed))


def _with_choices(
    body: dict[str, Any], deterministic: bool | None, temperature: float | None, seed: int | None
) -> dict[str, Any]:
    if deterministic is not None:
        body["deterministic"] = deterministic
    if temperature is not None:
        body["temperature"] = temperature
    if seed is not None:
        body["seed"] = seed
    return body


def reward_body(reward: float, id_: str | None, episode: str | None, length: int | None) -> dict[str, Any]:
    """One reward of a decision, or return of an episode.

    Raises:
        TypeError: it is for both or for neither.

    """
    if (id_ is None) == (episode is None):
        raise TypeError("a reward is for a decision (id=action.id) or for an episode (episode=…)")
    if id_ is not None:
        return {"id": id_, "reward": reward}
    body: dict[str, Any] = {"episode": episode, "return": reward}
    return body if length is None else body | {"length": length}


def read_action(answer: Answer, id_: str) -> Action:
    """The answer to `act_body`.

    Raises:
        BadAnswer: it is none.

    """
    body = decode(answer.body)
    try:
        action = Action(
            body["action"],
            body["logProbability"],
            body["value"],
            body["digest"],
            body["arm"],
            body["fallback"],
            body["id"],
            body.get("t"),
        )
    except KeyError as error:
        raise BadAnswer(f"the answer lacks {error}") from error
    _check(action, id_)
    return action


def read_batch(answer: Answer, ids: Sequence[str]) -> list[Action]:
    """The answer to `batch_body`; raises as `read_action`."""
    body = decode(answer.body)
    try:
        columns = [
            body["actions"],
            body["logProbabilities"],
            body["values"] or [None] * len(ids),
            body["digests"],
            body["arms"],
            body["fallbacks"],
            body["ids"],
            body.get("ts") or [None] * len(ids),
        ]
        rows = [Action(*row) for row in zip(*columns, strict=True)]
    except (KeyError, TypeError, ValueError) as error:
        raise BadAnswer(f"the answer lacks something: {error}") from error
    if len(rows) != len(ids):
        raise BadAnswer(f"the answer has {len(rows)} actions for {len(ids)} observations")
    for row, id_ in zip(rows, ids, strict=True):
        _check(row, id_)
    return rows


def read_json(answer: Answer) -> dict[str, Any]:
    """The JSON object that any other answer is; raises as `read_action`."""
    return decode(answer.body)


def _check(action: Any, id_: str) -> None:
    if action.id != id_:
        raise BadAnswer("the answer is to another request")
    if not (
        _numbers(action.action)
        and _finite(action.log_probability)
        and (action.value is None or _finite(action.value))
        and isinstance(action.digest, str)
        and isinstance(action.arm, str)
        and (action.fallback is None or isinstance(action.fallback, str))
        and (action.t is None or isinstance(action.t, int))
    ):
        raise BadAnswer("the answer is of another type than an action")


def _numbers(value: Any) -> bool:
    if isinstance(value, list):
        rows = cast("list[Any]", value)
        return bool(rows) and all(map(_numbers, rows))
    return _finite(value)


def _finite(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def safe_action(fallback: Fallback, observation: Any, mask: Any) -> Any:
    """The client's own action: a constant one gives way to the first that the mask allows."""
    if callable(fallback):
        return fallback(observation, mask)
    if mask is not None and isinstance(fallback, int):
        allowed: list[bool] = mask.tolist() if hasattr(mask, "tolist") else list(mask)
        if 0 <= fallback < len(allowed) and not allowed[fallback] and True in allowed:
            return allowed.index(True)
    return fallback


def good(answer: Answer) -> Answer:
    """The answer, if it is one.

    Raises:
        Overloaded, Failed, Refused: what its status says.

    """
    status = answer.status
    if 200 <= status < 300:
        return answer
    code, words = _reason(answer.body)
    words = words or f"the server answered {status}"
    if status in (429, 503):
        raise Overloaded(words, _seconds(answer.headers))
    if status >= 500:
        raise Failed(words)
    raise Refused(words, status, code)


def message(body: bytes) -> Answer:
    """A message over a WebSocket as an answer; it has the server's word for an error in place of a status."""
    code, _ = _reason(body) if b'"error"' in body else ("", "")
    status = 200 if not code else {"overloaded": 503, "no-policy": 503, "internal": 500}.get(code, 400)
    return Answer(status, {}, body, True)


def _reason(body: bytes) -> tuple[str, str]:
    try:
        error: Any = decode(body)["error"]
        return str(error["code"]), str(error["message"])
    except (BadAnswer, KeyError, TypeError):
        return "", ""


def _seconds(headers: Mapping[bytes, bytes]) -> float | None:
    """Retry-After in seconds; its other form, a date, says nothing without the server's clock."""
    value = headers.get(b"retry-after", b"")
    return float(value) if value.isdigit() else None


def encode(body: object) -> bytes:
    """Compact JSON; numpy's arrays and numbers become lists and numbers.

    Raises:
        Refused: JSON has no such value.

    """
    try:
        return _encode(body).encode()
    except (TypeError, ValueError) as error:
        raise Refused(f"this cannot be sent as JSON: {error}") from error


def decode(body: bytes) -> dict[str, Any]:
    """A JSON object without NaN and Infinity.

    Raises:
        BadAnswer: it is something else.

    """
    try:
        found = _decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"the answer is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadAnswer("the answer is no JSON object")
    return cast("dict[str, Any]", found)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is neither a number nor made of numbers")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_plain).encode
_decode = json.JSONDecoder(parse_constant=_no_constant).decode
