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

Json = dict[str, Any]
SYSTEM = "ratchet-system"
QUICK = {
    "RATCHET_PORT": "0",
    "RATCHET_STATUS_INTERVAL": "0.2",
    "RATCHET_RESYNC_SECONDS": "2",
    "RATCHET_LOG_LEVEL": "INFO",
}
"""Where the tests' operator differs from the chart's: it looks again sooner, so that tests end sooner."""


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
        own = {"POD_NAMESPACE": SYSTEM, "POD_NAME": name, "KUBECONFIG": str(kubeconfig)}
        passed = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        return {**passed, **given, **own, **QUICK}


@dataclass
class Operator:
    """One pod of the operator, started again whenever it ends, as a kubelet does; an async context manager."""

    chart: Chart
    proxy: Proxy
    log: Path
    name: str = "ratchet-0"
    restart: bool = True
    starts: int = 0
    codes: list[int] = field(default_factory=list[int])

    async def __aenter__(self) -> "Operator":
        self._environment = self.chart.environment(self.name, self.proxy.url)
        self._process: asyncio.subprocess.Process | None = None
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def kill(self) -> None:
        """As the kernel kills: at once, whatever it is doing."""
        self.signal(signal.SIGKILL)
        self.proxy.close()

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    @property
    def running(self) -> bool:
        return not self._task.done()

    async def _run(self) -> None:
        while True:
            self.proxy.reopen()
            self.starts += 1
            with self.log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", "from ratchet_operator.main import main; main()",
                    env=self._environment, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL,
                )  # fmt: skip
            try:
                self.codes.append(await self._process.wait())
            except asyncio.CancelledError:
                self._process.kill()
                await self._process.wait()
                raise
            if not self.restart:
                return
