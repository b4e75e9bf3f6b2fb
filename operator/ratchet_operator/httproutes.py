"""Looks for the HTTPRoutes that PolicyDeployments name, each by itself, since their API may not be there."""

import asyncio

from ratchet_operator.apiserver import ApiError, ApiServer
from ratchet_operator.build.gateway import Found
from ratchet_operator.conditions import Verdict, no, unknown
from ratchet_operator.kinds import HTTP_ROUTE

SECONDS = 1.0


async def find(api: ApiServer, namespace: str, name: str) -> Found:
    """What there is of an HTTPRoute; that nobody can say is a value too."""
    try:
        async with asyncio.timeout(SECONDS):
            return Found(name, await api.request("GET", HTTP_ROUTE.path(namespace, name)))
    except TimeoutError:
        words = f"HTTPRoute {name}: the API server does not answer."
        return Found(name, why=unknown("HTTPRouteUnknown", words))
    except ApiError as error:
        # An API that is not there is a 404 without a reason.
        if error.status == 404 and error.reason == "NotFound":
            return Found(name)
        return Found(name, why=_why(error, name))


def _why(error: ApiError, name: str) -> Verdict:
    if error.status == 404:
        words = (
            f"This cluster has no {HTTP_ROUTE.api_version}: install the Gateway API and one of its "
            "controllers, or take traffic.gateway out of the spec."
        )
        return no("GatewayAPINotFound", words)
    if error.status == 403:
        words = "The operator may not read HTTPRoutes: install its chart with gateway.enabled=true."
        return no("GatewayForbidden", words)
    return unknown("HTTPRouteUnknown", f"HTTPRoute {name}: {error}")
