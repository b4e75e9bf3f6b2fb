"""Prints each post that it gets as a line of JSON, with nothing but Python's own library."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SILENT = "/silent"


class Chat(BaseHTTPRequestHandler):
    """Answers 200; under `SILENT` it takes the post and says nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = {"path": self.path, "type": self.headers["content-type"], "body": body}
        sys.stdout.write(f"{json.dumps(said)}\n")
        sys.stdout.flush()
        if self.path == SILENT:
            threading.Event().wait()
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_request(self, *_: object) -> None:
        """Only posts are printed."""


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8080), Chat).serve_forever()
