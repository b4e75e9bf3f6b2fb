"""Policy servers that pretend, as far as an operator can tell: what they say of themselves, and their route.

Who asks them for an action gets the name of the pod, and no guard has anything to judge by; a rollout that a
person promotes needs none.
"""

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from aiohttp import web
from pydantic import ValidationError
from ratchet_operator.kinds import Json

from ratchet.api.v1alpha1.serverstats import LATENCY_BOUNDS_SECONDS, Route, RouteStats, ServerStats

KEY = "chaos" * 8
"""From which the operator under test makes the servers' tokens."""


@dataclass
class PolicyServers:
    """Answers for every pod of the component `server`.

    Args:
        pod_behind: the pod that a request was sent to.

    Attributes:
        owner: UID of the PolicyDeployment, which the token of an order must be made from.
        routes: by the pod's UID, what it was told last.
        asked: by the pod's UID, when it was asked for an action last, or began.
        refused: how many routes came without the right token, or were older than the one in force.

    """

    pod_behind: Callable[[web.Request], Json]
    owner: str = ""
    routes: dict[str, Route] = field(default_factory=dict[str, Route])
    asked: dict[str, float] = field(default_factory=dict[str, float])
    refused: int = 0

    def register(self, app: web.Application) -> None:
        app.router.add_get("/v1/stats", self._stats)
        app.router.add_put("/v1/route", self._route)
        app.router.add_post("/v1/act", self._act)

    async def _act(self, request: web.Request) -> web.Response:
        pod = self.pod_behind(request)
        self.asked[pod["metadata"]["uid"]] = time.monotonic()
        return web.json_response({"pod": pod["metadata"]["name"]})

    async def _stats(self, request: web.Request) -> web.Response:
        pod = self.pod_behind(request)
        uid = pod["metadata"]["uid"]
        (digest,) = [
            one.removeprefix("--digest=sha256:")
            for one in pod["spec"]["containers"][0]["args"]
            if one.startswith("--digest=")
        ]
        stats = ServerStats(
            incarnation=uid,
            uptime_seconds=time.monotonic() - self.asked.setdefault(uid, time.monotonic()),
            ready=True,
            draining=False,
            current=digest[::-1],
            route=RouteStats(**self.routes.get(uid, Route()).model_dump()),
            latency_bounds_seconds=list(LATENCY_BOUNDS_SECONDS),
        )
        return web.json_response(stats.to_wire())

    async def _route(self, request: web.Request) -> web.Response:
        pod = self.pod_behind(request)
        uid = pod["metadata"]["uid"]
        try:
            route = Route.model_validate_json(await request.read())
        except ValidationError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        token = hmac.new(KEY.encode(), self.owner.encode(), sha256).hexdigest()
        is_right = request.headers.get("Authorization") == f"Bearer {token}"
        if not is_right or route.generation < self.routes.get(uid, Route()).generation:
            self.refused += 1
            raise web.HTTPConflict(text="the route in force has a larger generation")
        self.routes[uid] = route
        return web.json_response(route.to_wire())
