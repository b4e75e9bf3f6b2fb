"""/status for the operator, /metrics for Prometheus, /healthz and /readyz for the kubelet."""

import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from ratchet_trainer.board import Board


def serve(board: Board, registry: CollectorRegistry, port: int) -> ThreadingHTTPServer:
    """Answers on all interfaces, on threads of its own, until the process ends."""

    class Answers(BaseHTTPRequestHandler):
        """Four small pages."""

        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/status":
                    body = board.ask().model_dump_json(by_alias=True, exclude_none=True).encode()
                    self._answer(HTTPStatus.OK, "application/json", body)
                case "/metrics":
                    self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry))
                case "/healthz":
                    self._word(board.alive, "the learner's loop stands still")
                case "/readyz":
                    self._word(board.ready, "starting")
                case _:
                    self._answer(
                        HTTPStatus.NOT_FOUND, "text/plain", b"try /status, /metrics, /healthz or /readyz\n"
                    )

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Probes every few seconds are no news."""

        def _word(self, good: bool, otherwise: str) -> None:
            status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, "text/plain", b"ok\n" if good else f"{otherwise}\n".encode())

        def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("", port), Answers)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server
