"""Act requests by the Open Inference Protocol, version 2 (github.com/kserve/open-inference-protocol).

Inputs: `observation` (N, *shape), and where wanted `mask` (N, outputs), `episode` (N) and `policy` (N, the
`digest` that answered the episode before, or empty). Outputs: `action`, `log_probability`, `value` where
there is one, `digest` and `fallback`. Parameters: `deterministic`, `temperature`, `seed`.
"""

from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote

import numpy as np
import orjson
from numpy.typing import NDArray

from ratchet_inference.application import Handler
from ratchet_inference.asking import Question, from_json, read_json
from ratchet_inference.exchange import Exchange
from ratchet_inference.fitting import numbers
from ratchet_inference.problems import Problem, bad_request
from ratchet_inference.seams import Policy, Residents

_TYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_VERSION = "0.1.0"


class OpenInference:
    """Handlers of `/v2`.

    Args:
        name: of the one model.
        residents: the policies behind it.
        ready: whether traffic should come.
        ask: takes questions.
        most: observations in one request.

    """

    def __init__(
        self,
        name: str,
        residents: Residents,
        ready: Callable[[], bool],
        ask: Callable[[Question], None],
        most: int,
    ) -> None:
        self._name = name
        self._residents = residents
        self._ready = ready
        self._ask = ask
        self._most = most

    def routes(self, guard: Callable[[Handler], Handler]) -> dict[bytes, dict[bytes, Handler]]:
        """By path and method; `guard` goes around what decides."""
        return {
            b"/v2": {b"GET": self._server},
            b"/v2/health/live": {b"GET": _live},
            b"/v2/health/ready": {b"GET": self._readiness},
            b"/v2/models/": {b"GET": self._model, b"POST": guard(self._infer)},
        }

    def _server(self, exchange: Exchange) -> None:
        body: dict[str, Any] = {"name": "ratchet-inference", "version": _VERSION, "extensions": []}
        exchange.respond(200, orjson.dumps(body))

    def _readiness(self, exchange: Exchange) -> None:
        exchange.respond(200 if self._ready() else 503, orjson.dumps({"ready": self._ready()}))

    def _model(self, exchange: Exchange) -> None:
        try:
            policy, rest = self._find(exchange)
            if rest == ["ready"]:
                body: dict[str, Any] = {"name": self._name, "ready": self._ready()}
                exchange.respond(200 if self._ready() else 503, orjson.dumps(body))
            elif rest:
                raise Problem(404, "no-such-path", "send GET /v2/models/NAME or GET /v2/models/NAME/ready")
            else:
                exchange.respond(200, orjson.dumps(self._metadata(policy)))
        except Problem as problem:
            _refuse(exchange, problem)

    def _infer(self, exchange: Exchange) -> None:
        try:
            policy, rest = self._find(exchange)
            if rest != ["infer"]:
                raise Problem(404, "no-such-path", "send POST /v2/models/NAME/infer")
            body = read_json(exchange.body)
            question = _question(body, self._most)
            question.received = exchange.received
            question.came(exchange.headers)
            wanted = _wanted(body)

            def done(question: Question) -> None:
                if question.problem:
                    _refuse(exchange, question.problem)
                    return
                answer: dict[str, Any] = {
                    "model_name": self._name,
                    "model_version": question.digests[0],
                    "outputs": _outputs(question, policy.spec.action.dtype, wanted),
                }
                if isinstance(body.get("id"), str):
                    answer["id"] = body["id"]
                exchange.respond(200, orjson.dumps(answer))

            question.done = done
            self._ask(question)
        except Problem as problem:
            _refuse(exchange, problem)

    def _find(self, exchange: Exchange) -> tuple[Policy, list[str]]:
        """The policy, and what follows its name (and version) in the path."""
        name, *rest = unquote(exchange.path.decode("latin-1")).split("/")[3:]
        policy = self._residents.current
        if name != self._name:
            words = f"there is no model {name[:100]!r}: this server has {self._name!r}"
            raise Problem(404, "no-such-model", words)
        if policy is None:
            raise Problem(503, "no-policy", "no policy is loaded yet: ask again later")
        if len(rest) > 1 and rest[0] == "versions":
            if rest[1] != policy.digest:
                raise Problem(404, "no-such-version", f"the version that is served is {policy.digest}")
            rest = rest[2:]
        return policy, rest

    def _metadata(self, policy: Policy) -> dict[str, Any]:
        observation, action = policy.spec.observation, policy.spec.action
        inputs = [_tensor("observation", observation.dtype, observation.shape)]
        if action.kind != "Box":
            inputs.append(_tensor("mask", "bool", (action.outputs,)))
        inputs += [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in ("episode", "policy")]
        return {
            "name": self._name,
            "versions": [policy.digest],
            "platform": "ratchet",
            "inputs": inputs,
            "outputs": [
                _tensor("action", action.dtype, action.shape),
                _tensor("log_probability", "float32", ()),
                _tensor("value", "float32", ()),
                {"name": "digest", "datatype": "BYTES", "shape": [-1]},
                {"name": "fallback", "datatype": "BYTES", "shape": [-1]},
            ],
        }


def _live(exchange: Exchange) -> None:
    exchange.respond(200, b'{"live":true}')


def _refuse(exchange: Exchange, problem: Problem) -> None:
    """The protocol's own form of an error."""
    exchange.refuse(problem, orjson.dumps({"error": problem.message}))


def _tensor(name: str, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "datatype": _NAMES.get(dtype, "FP32"), "shape": [-1, *shape]}


def _question(body: Any, most: int) -> Question:
    fields = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
    if not isinstance(fields.get("inputs"), list):
        raise bad_request("bad-body", 'send {"inputs": [{"name": "observation", …}]}')
    request: dict[str, Any] = {}
    for one in fields["inputs"]:
        tensor = cast("dict[str, Any]", one) if isinstance(one, dict) else {}
        name = tensor.get("name")
        if name == "observation":
            request["observations"] = _array(tensor).tolist()
        elif name == "mask":
            request["masks"] = _array(tensor).tolist()
        elif name == "episode":
            request["episodes"] = tensor.get("data")
        elif name == "policy":
            data = tensor.get("data")
            request["policies"] = (
                [one or None for one in cast("list[Any]", data)] if isinstance(data, list) else data
            )
        else:
            words = f"unknown input {name!r}: send observation, mask, episode and policy"
            raise bad_request("bad-input", words)
    if "observations" not in request:
        raise bad_request("no-observation", "send an input named observation")
    parameters: Any = fields.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise bad_request("bad-field", "parameters must be an object")
    for name in ("deterministic", "temperature", "seed"):
        if name in parameters:
            request[name] = parameters[name]
    return from_json(request, most)


def _array(tensor: dict[str, Any]) -> NDArray[Any]:
    """The tensor, whose data may be flat or nested."""
    name, datatype, shape, data = (tensor.get(key) for key in ("name", "datatype", "shape", "data"))
    if not isinstance(datatype, str) or datatype not in _TYPES:
        raise bad_request("bad-input", f"{name}: datatype must be one of {', '.join(_TYPES)}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in cast("list[Any]", shape)):
        raise bad_request("bad-input", f"{name}: shape must be a list of sizes, the first one of the batch")
    if not shape or not isinstance(data, list):
        raise bad_request("bad-input", f"{name}: send data as a list, and a shape of at least one size")
    array = numbers(cast("list[Any]", data))
    if array is None:
        words = f"{name}: data must hold only numbers, flat or in lists of equal lengths"
        raise bad_request("wrong-type", words)
    try:
        return array.reshape(cast("list[int]", shape))
    except (ValueError, OverflowError) as error:
        raise bad_request("wrong-shape", f"{name}: data does not fill the shape {shape}") from error


def _wanted(body: dict[str, Any]) -> set[str] | None:
    """Names of the outputs that were asked for; None is all of them."""
    if not body.get("outputs"):
        return None
    if not isinstance(body["outputs"], list):
        raise bad_request("bad-field", "outputs must be a list")
    outputs = cast("list[Any]", body["outputs"])
    names = [cast("dict[str, Any]", one).get("name") for one in outputs if isinstance(one, dict)]
    return {name for name in names if isinstance(name, str)}


def _outputs(question: Question, dtype: str, wanted: set[str] | None) -> list[dict[str, Any]]:
    rows = len(question)
    actions = np.array(question.actions)
    columns: list[tuple[str, str, list[int], list[Any]]] = [
        ("action", _NAMES.get(dtype, "FP32"), [rows, *actions.shape[1:]], actions.reshape(-1).tolist()),
        ("log_probability", "FP32", [rows], question.log_probabilities),
        ("digest", "BYTES", [rows], question.digests),
        ("fallback", "BYTES", [rows], [step or "" for step in question.fallbacks]),
    ]
    values = question.values
    if values is not None and None not in values:
        columns.insert(2, ("value", "FP32", [rows], values))
    return [
        {"name": name, "datatype": kind, "shape": shape, "data": data}
        for name, kind, shape, data in columns
        if wanted is None or name in wanted
    ]
