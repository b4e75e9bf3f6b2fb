"""The same counters for Prometheus, rendered from what `/v1/stats` shows: nothing is counted twice."""

from collections.abc import Iterator, Mapping
from typing import Any

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


def render(state: Mapping[str, Any]) -> bytes:
    """The text format.

    Args:
        state: as `/v1/stats` shows it.

    """
    return "".join(_lines(state)).encode()


def _lines(state: Mapping[str, Any]) -> Iterator[str]:
    arms: list[Mapping[str, Any]] = state["arms"]
    yield from _simple("up_seconds", "gauge", "Since the server started.", state["uptimeSeconds"])
    yield from _simple("ready", "gauge", "Whether traffic should come.", int(state["ready"]))
    yield from _simple("connections", "gauge", "Open connections.", state["connections"])
    yield from _simple("sessions", "gauge", "Episodes that are remembered.", state["sessions"])
    yield from _simple("shed_total", "counter", "Requests refused before the queue grew.", state["shed"])
    words = "Requests that came again under their id, and got the answer they had."
    yield from _simple("repeated_total", "counter", words, state["repeated"])
    words = "Copies for a shadow that were not sent, as too many were on their way."
    yield from _simple("copies_dropped_total", "counter", words, state["copiesDropped"])
    yield from _simple("swaps_total", "counter", "Policies that took over.", state["swaps"])
    yield from _simple("canary_weight", "gauge", "Share of episodes sent on.", state["route"]["weight"])
    yield from _simple("mirror", "gauge", "Share of episodes that are copied.", state["route"]["mirror"])
    is_open = state["route"]["breaker"] != "Closed"
    yield from _simple("breaker_open", "gauge", "Whether the canary is left out, as broken.", int(is_open))
    yield from _family("refusals_total", "counter", "Requests refused as wrong, by code.")
    for code, number in state["refusals"].items():
        yield _sample("refusals_total", {"code": code}, number)
    for name, key, words in (
        ("requests_total", "requests", "Requests answered."),
        ("predictions_total", "predictions", "Rows answered; a request can have many."),
        ("mask_violations_total", "maskViolations", "Actions that their mask forbids; none was given."),
        ("nan_answers_total", "nanAnswers", "Answers with NaN or infinity; none was given."),
    ):
        yield from _family(name, "counter", words)
        for arm in arms:
            yield _sample(name, _of(arm), arm[key])
    yield from _family("errors_total", "counter", "Failures of a policy or its server, by class.")
    for arm in arms:
        for kind, number in arm["errors"].items():
            yield _sample("errors_total", {**_of(arm), "class": kind}, number)
    yield from _family("fallbacks_total", "counter", "Answers that another step gave, by step and reason.")
    for arm in arms:
        for step, reasons in arm["fallbacks"].items():
            for reason, number in reasons.items():
                yield _sample("fallbacks_total", {**_of(arm), "step": step, "reason": reason}, number)
    yield from _family("latency_seconds", "histogram", "From the last byte of a request to its answer.")
    for arm in arms:
        total = 0
        bounds = [*map(str, state["latencyBoundsSeconds"]), "+Inf"]
        for bound, number in zip(bounds, arm["latency"]["counts"], strict=True):
            total += number
            yield _sample("latency_seconds_bucket", {**_of(arm), "le": bound}, total)
        yield _sample("latency_seconds_sum", _of(arm), arm["latency"]["sumSeconds"])
        yield _sample("latency_seconds_count", _of(arm), total)
    for group in ("decisions", "rewards"):
        yield from _family(group, "untyped", f"What became of {group}.")
        totals: Mapping[str, int] = state[group]
        for what, number in totals.items():
            yield _sample(group, {"what": what}, number)


def _of(arm: Mapping[str, Any]) -> dict[str, str]:
    return {"arm": arm["arm"], "digest": arm["digest"][:12]}


def _simple(name: str, kind: str, words: str, value: float) -> Iterator[str]:
    yield from _family(name, kind, words)
    yield _sample(name, {}, value)


def _family(name: str, kind: str, words: str) -> Iterator[str]:
    yield f"# HELP ratchet_policy_{name} {words}\n# TYPE ratchet_policy_{name} {kind}\n"


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"ratchet_policy_{name}{{{inside}}} {value}\n" if inside else f"ratchet_policy_{name} {value}\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
