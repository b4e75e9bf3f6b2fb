"""What an operator may change while the server runs: the policy, and the route to a canary."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError

from ratchet.api.v1alpha1.base import ApiModel
from ratchet.api.v1alpha1.serverstats import Route
from ratchet.policies.errors import ArtifactDenied, ArtifactError, ArtifactUnavailable
from ratchet_inference.asking import read_json
from ratchet_inference.dispatch import Dispatch
from ratchet_inference.exchange import Exchange
from ratchet_inference.problems import Problem, bad_request, internal
from ratchet_inference.seams import Swappable
from ratchet_inference.sessions import Sessions
from ratchet_inference.stats import Stats

T = TypeVar("T", bound=ApiModel)

log = logging.getLogger(__name__)


class PolicyRequest(ApiModel):
    """`PUT /v1/policy`.

    Attributes:
        source: folder or s3:// URI.
        digest: that it must have.
        keep_episodes: episodes that run stay with the policy they began with.

    """

    source: str
    digest: str | None = None
    keep_episodes: bool = True


class Admin:
    """Handlers of the admin paths."""

    def __init__(self, residents: Swappable, sessions: Sessions, dispatch: Dispatch, stats: Stats) -> None:
        self._residents = residents
        self._sessions = sessions
        self._dispatch = dispatch
        self._stats = stats
        self._tasks: set[asyncio.Task[None]] = set()

    def put_policy(self, exchange: Exchange) -> None:
        """Loads, verifies and swaps; whatever fails, the policy before goes on."""
        request = _parse(PolicyRequest, exchange)

        async def answer() -> None:
            began = perf_counter()
            before = self._residents.current
            swap = await self.swap(request)
            after = self._residents.current
            body = {
                "digest": after and after.digest,
                "previous": before and before.digest,
                "loadSeconds": perf_counter() - began - swap,
                "swapSeconds": swap,
            }
            exchange.respond(200, orjson.dumps(body))

        self._later(exchange, answer)

    async def swap(self, request: PolicyRequest, *, first: bool = False) -> float:
        """Lets another policy answer; the seconds that the swap itself took.

        Args:
            request: what to load.
            first: only if none answers once it is loaded.

        Raises:
            Problem: it cannot be served.

        """
        try:
            policy = await self._residents.load(request.source, request.digest)
        except ArtifactDenied as error:
            raise Problem(503, "artifact-denied", str(error)) from error
        except ArtifactUnavailable as error:
            raise Problem(503, "artifact-unavailable", str(error)) from error
        except ArtifactError as error:
            raise Problem(422, "bad-artifact", str(error)) from error
        began = perf_counter()
        current = self._residents.current
        if first and current:
            return 0.0
        spec = policy.spec
        if current and (spec.observation, spec.action) != (current.spec.observation, current.spec.action):
            words = "it observes or acts in other spaces than the policy it would replace: start a new server"
            raise Problem(422, "other-spaces", words)
        self._residents.swap(policy)
        if not request.keep_episodes:
            self._sessions.release(current.digest if current else "")
        seconds = perf_counter() - began
        self._stats.swaps += 1
        log.info("swapped", extra={"fields": {"digest": policy.digest, "source": request.source}})
        return seconds

    def put_route(self, exchange: Exchange) -> None:
        """Takes a route; what it answers is the route in force, once its canary is reached or soon after."""
        self._dispatch.set_route(_parse(Route, exchange))
        log.info("routes", extra={"fields": self._dispatch.route.to_wire()})

        async def answer() -> None:
            await self._dispatch.reached()
            self.get_route(exchange)

        self._later(exchange, answer)

    def get_route(self, exchange: Exchange) -> None:
        """Says which route is in force."""
        exchange.respond(200, orjson.dumps(self._dispatch.route.to_wire()))

    def _later(self, exchange: Exchange, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def run() -> None:
            try:
                await work()
            except Problem as problem:
                log.warning("refused", extra={"fields": {"code": problem.code, "why": problem.message}})
                exchange.refuse(problem)
            except Exception:
                log.exception("failed")
                exchange.refuse(internal())

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _parse(model: type[T], exchange: Exchange) -> T:
    try:
        return model.model_validate(read_json(exchange.body))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise bad_request("bad-field", f"{where}: {first['msg']}") from error
