"""kubectl drain, for the pods of one selector: the one node of the cluster keeps all others."""

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import Namespace, eventually

EVERYWHERE = Namespace("default")


@contextmanager
def draining(selector: str) -> Iterator[Callable[[], str]]:
    """The node is drained of these pods, by the eviction API; what kubectl has said so far can be asked.

    In the end the node takes pods again, and with them kubectl comes to its own end.

    Raises:
        AssertionError: it did not, or not with 0.

    """
    (node,) = EVERYWHERE.list("nodes")
    name = node["metadata"]["name"]
    command = ["kubectl", "drain", name, f"--pod-selector={selector}", "--delete-emptydir-data"]
    with tempfile.NamedTemporaryFile("w") as log:

        def said() -> str:
            return Path(log.name).read_text()

        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            try:
                yield said
            finally:
                EVERYWHERE.kubectl("uncordon", name)
            eventually("the drain ends", lambda: process.poll() is not None)
            assert process.returncode == 0, said()
        finally:
            process.kill()
            process.wait()
