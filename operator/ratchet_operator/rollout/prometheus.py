"""One more source of verdicts: a query of Prometheus whose value is compared with bounds.

What can't be had, or is no number, is SourceDown: it neither promotes nor rolls back.
"""

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any

import aiohttp

from ratchet.api.v1alpha1.policydeployment import PrometheusGuard
from ratchet.evidence import Decision, Verdict, source_down

LARGEST_ANSWER = 1 << 20
SECONDS = 5.0


def verdict(guard: PrometheusGuard, body: Any) -> Decision:
    """The guard's verdict on the JSON that Prometheus answered with.

    A query without a result, or whose result is NaN, has seen no traffic: that is NotEnoughEvidence.
    """
    match body:
        case {"status": "success", "data": {"resultType": "scalar", "result": [_, str() as value]}}:
            values = [value]
        case {"status": "success", "data": {"resultType": "vector", "result": [*series]}}:
            values = [_value(one) for one in series]
        case {"status": "error", "errorType": str() as kind}:
            return source_down(guard.name, f"Prometheus refuses the query: {kind[:80]}")
        case _:
            return source_down(guard.name, "the answer is not one of Prometheus to an instant query")
    if not values:
        return Decision(guard.name, Verdict.NOT_ENOUGH_EVIDENCE, "The query has no result yet.")
    if len(values) > 1:
        return source_down(guard.name, f"the query has {len(values):,} results: aggregate them to one")
    try:
        number = float(values[0])
    except ValueError:
        return source_down(guard.name, "the result is not a number")
    if math.isnan(number):
        return Decision(guard.name, Verdict.NOT_ENOUGH_EVIDENCE, "The query's value is not a number yet.")
    return _compared(guard, number)


async def ask(
    session: aiohttp.ClientSession, guards: Sequence[PrometheusGuard], seconds: float = SECONDS
) -> tuple[Decision, ...]:
    """Asks every guard's query at once, each for so many seconds at most; raises nothing."""
    return tuple(await asyncio.gather(*(_ask(session, guard, seconds) for guard in guards)))


async def _ask(session: aiohttp.ClientSession, guard: PrometheusGuard, seconds: float) -> Decision:
    try:
        url = guard.url.rstrip("/") + "/api/v1/query"
        timeout = aiohttp.ClientTimeout(total=seconds)
        form = {"query": guard.query, "timeout": f"{seconds:g}s"}
        async with session.post(url, data=form, timeout=timeout, allow_redirects=False) as response:
            read = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                read += chunk
                if len(read) > LARGEST_ANSWER:
                    return source_down(
                        guard.name, "the answer is too long: aggregate the query to one number"
                    )
            body: Any = json.loads(read)
    except TimeoutError:
        return source_down(guard.name, f"Prometheus gave no answer in {seconds:g} s")
    except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
        # Its text may hold the URL, and that a password.
        return source_down(guard.name, f"Prometheus can't be asked: {type(error).__name__}")
    return verdict(guard, body)


def _value(series: Any) -> str:
    """What a series of an instant vector says; empty where it says nothing."""
    match series:
        case {"value": [_, str() as value]}:
            return value
        case _:
            return ""


def _compared(guard: PrometheusGuard, value: float) -> Decision:
    above = guard.max is not None and value > guard.max
    below = guard.min is not None and value < guard.min
    bounds = [f"at most {guard.max:.4g}"] if guard.max is not None else []
    bounds += [f"at least {guard.min:.4g}"] if guard.min is not None else []
    return Decision(
        guard.name,
        Verdict.FAIL if above or below else Verdict.PASS,
        f"The query's value is {value:.4g}, {' and '.join(bounds)} allowed.",
        canary=value if math.isfinite(value) else None,
        bound=guard.min if below else guard.max if guard.max is not None else guard.min,
    )
