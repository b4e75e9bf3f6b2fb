"""Which handler answers under which path, and to whom. What it answers is the handler's."""

import hmac
import logging
from collections.abc import Callable, Mapping

from ratchet_inference.exchange import Exchange
from ratchet_inference.problems import Problem, internal

log = logging.getLogger(__name__)

Handler = Callable[[Exchange], None]
Routes = Mapping[bytes, Mapping[bytes, Handler]]
TEXT = b"text/plain; charset=utf-8"


class Application:
    """The table of paths.

    Args:
        routes: handlers by path and method; a path that ends in `/` takes everything below it.

    """

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._folders = [path for path in routes if path.endswith(b"/")]

    def handle(self, exchange: Exchange) -> None:
        """Answers, now or later; raises nothing."""
        try:
            self._handler(exchange)(exchange)
        except Problem as problem:
            exchange.refuse(problem)
        except Exception:
            log.exception("failed", extra={"fields": {"path": exchange.path.decode("latin-1")}})
            exchange.refuse(internal())

    def _handler(self, exchange: Exchange) -> Handler:
        methods = self._routes.get(exchange.path)
        if methods is None:
            folder = next((path for path in self._folders if exchange.path.startswith(path)), None)
            if folder is None:
                raise Problem(404, "no-such-path", "there is nothing here: ask POST /v1/act for actions")
            methods = self._routes[folder]
        handler = methods.get(b"GET" if exchange.method == b"HEAD" else exchange.method)
        if handler is None:
            words = ", ".join(sorted(method.decode() for method in methods))
            raise Problem(405, "wrong-method", f"this path takes {words}")
        return handler


def guarded(handler: Handler, token: str | None) -> Handler:
    """The handler, for those who send the token."""
    if token is None:
        return handler
    wanted = b"Bearer " + token.encode()

    def check(exchange: Exchange) -> None:
        if not hmac.compare_digest(exchange.headers.get(b"authorization", b""), wanted):
            raise Problem(
                401, "no-token", "send the header Authorization: Bearer TOKEN with this server's token"
            )
        handler(exchange)

    return check


def owned(handler: Handler, token: str | None) -> Handler:
    """The handler, for those who send the admin token; for nobody where the server has none."""
    if token is not None:
        return guarded(handler, token)

    def refuse(_exchange: Exchange) -> None:
        raise Problem(403, "no-admin", "this server takes no orders: start it with --admin-token-file")

    return refuse
