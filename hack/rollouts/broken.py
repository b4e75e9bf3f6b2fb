"""Makes a policy server answer a share of its requests with 500, as a release would that has a bug.

Mounted as `sitecustomize.py` in a folder of the server's PYTHONPATH, beside a file `share`. It fails where
the server's own code would, behind all checks that come before traffic. Each turn with requests for whose
answer somebody waits is told on stdout with the time, and `/metrics` has two counters more, `asked_total` and
`failed_total`, from the start.
"""

import random
import time
from pathlib import Path
from typing import Any

from ratchet_inference import server
from ratchet_inference.asking import SHADOW
from ratchet_inference.batching import Answering

SHARE = float(Path(__file__).with_name("share").read_text())
counts = {"asked_total": 0, "failed_total": 0}
_render = server.render


class Broken(Answering):
    """As the server is, most of the time."""

    def _decide(self, questions: list[Any], *rest: Any, **more: Any) -> None:
        counts["asked_total"] += len(questions)
        if asked := sum(question.given != SHADOW for question in questions):
            print(f"asked {asked} {time.time():.4f}", flush=True)
        if random.random() < SHARE:
            counts["failed_total"] += len(questions)
            raise RuntimeError("a bug of this release")
        super()._decide(questions, *rest, **more)


def render(state: Any) -> bytes:
    """What the server says, and the two counters."""
    lines = (f"# TYPE {name} counter\n{name} {number}\n" for name, number in counts.items())
    return _render(state) + "".join(lines).encode()


module: Any = server
module.Answering, module.render = Broken, render
