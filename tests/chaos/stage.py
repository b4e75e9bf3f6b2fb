"""What every test of chaos stands on: the API as administrator, and the node that pretends."""

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from kubelet import Api, Kubelet
from lives import Life
from operators import SYSTEM, Chart, Operator
from proxy import Plan, Proxy
from ratchet_operator.kinds import LEASE
from ratchet_operator.leader import LEASE_NAME


@dataclass
class Stage:
    """Makes what a test needs, for as long as the test lasts."""

    chart: Chart
    api: Api
    kubelet: Kubelet
    logs: Path

    def proxy(self, plan: Plan | None = None, *, one_write_at_a_time: bool = False) -> Proxy:
        cluster = self.chart.cluster
        return Proxy(cluster.url, str(cluster.ca), plan or Plan(), one_write_at_a_time)

    def operator(self, proxy: Proxy, name: str = "ratchet-0", *, restart: bool = True) -> Operator:
        return Operator(self.chart, proxy, self.logs / f"{name}.log", name, restart)

    def life(self, namespace: str, *proxies: Proxy) -> Life:
        return Life(self.api, self.kubelet, proxies, namespace)


@asynccontextmanager
async def stage(
    chart: Chart, logs: Path, *, pods_run: bool = True, network: str = Kubelet.network
) -> AsyncIterator[Stage]:
    """A stage on the cluster in which the chart is installed; pods have addresses of the network."""
    cluster = chart.cluster
    token = json.loads(cluster.admin_kubeconfig.read_text())["users"][0]["user"]["token"]
    async with aiohttp.ClientSession(
        cluster.url,
        headers={"Authorization": f"Bearer {token}"},
        connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(cluster.ca))),
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:
        api = Api(session)
        await api.request("DELETE", LEASE.path(SYSTEM, LEASE_NAME))  # nobody is left who would give it back
        async with Kubelet(api, pods_run, network) as kubelet:
            yield Stage(chart, api, kubelet, logs)
