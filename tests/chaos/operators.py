"""The operator as the chart runs it: its program, its environment, its ServiceAccount and nothing beyond."""

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localcluster.simulated import SimulatedCluster
from proxy import Proxy
from servers import KEY

Json = dict[str, Any]
SYSTEM = "ratchet-system"
QUICK = {
    "RATCHET_PORT": "0",
    "RATCHET_STATUS_INTERVAL": "0.2",
    "RATCHET_RESYNC_SECONDS": "1",
    "RATCHET_LOG_LEVEL": "INFO",
}
"""Where the tests' operator differs from the chart's: it looks again sooner, so that tests end sooner."""


DOOR = "198.19.0.1"
"""Where an operator would hold requests; nothing is there but in the test that is about it."""


@dataclass
class Chart:
    """The rendered chart, whose objects but for the Deployment live in the cluster."""

    cluster: SimulatedCluster
    documents: list[Json]

    @property
    def deployment(self) -> Json:
        (found,) = (doc for doc in self.documents if doc["kind"] == "Deployment")
        return found

    def environment(self, name: str, server: str) -> dict[str, str]:
        """What the container of the pod `name` finds, with a kubeconfig instead of a mounted token."""
        pod = self.deployment["spec"]["template"]["spec"]
        given = {item["name"]: item["value"] for item in pod["containers"][0]["env"] if "value" in item}
        kubeconfig = self.cluster.service_account_kubeconfig(SYSTEM, pod["serviceAccountName"], server)
        own = {
            "POD_NAMESPACE": SYSTEM,
            "POD_NAME": name,
            "POD_IP": DOOR,
            "KUBECONFIG": str(kubeconfig),
        }
        passed = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        return {**passed, **given, **own, **QUICK}


NURSERY = """
import os, sys
from ratchet_operator.main import main
for path in sys.stdin:
    pid = os.fork()
    if pid == 0:
        log = os.open(path.strip(), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        main()
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Imports the operator once and forks for each start: an import takes longer than everything a start does."""


@dataclass
class Operator:
    """One pod of the operator, started again whenever it ends, as kubelets do; an async context manager."""

    chart: Chart
    proxy: Proxy
    log: Path
    name: str = "ratchet-0"
    restart: bool = True
    codes: list[int] = field(default_factory=list[int])
    """How each start ended; negative where a signal ended it."""

    async def __aenter__(self) -> "Operator":
        self._pid: int | None = None
        environment = self.chart.environment(self.name, self.proxy.url)
        key = self.log.with_suffix(".key")
        key.write_text(KEY)
        self._nursery = await asyncio.create_subprocess_exec(
            sys.executable, "-c", NURSERY, env={**environment, "RATCHET_ADMIN_KEY_FILE": str(key)},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.signal(signal.SIGKILL)
        self._nursery.kill()
        await self._nursery.wait()

    def kill(self) -> None:
        """As the kernel kills: at once, whatever it is doing."""
        self.signal(signal.SIGKILL)
        self.proxy.close()

    def signal(self, number: int) -> None:
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(self._pid, number)

    @property
    def running(self) -> bool:
        return not self._task.done()

    async def _run(self) -> None:
        start, said = self._nursery.stdin, self._nursery.stdout
        assert start is not None
        assert said is not None
        while self.restart or not self.codes:
            self.proxy.reopen()
            start.write(f"{self.log}\n".encode())
            self._pid = int(await said.readline())
            code = int(await said.readline())
            self._pid = None
            self.codes.append(code)
