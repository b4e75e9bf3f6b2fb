"""One control plane for all of chaos, with the chart's objects in it."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "hack"))

from lives import Life  # noqa: E402
from localcluster.simulated import SimulatedCluster  # noqa: E402
from operators import SYSTEM, Chart  # noqa: E402
from stage import stage  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def chart() -> Iterator[Chart]:
    helm = _tool("helm")
    command = [helm, "template", "ratchet", "charts/ratchet", "--namespace", SYSTEM, "--skip-tests"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    documents = [document for document in yaml.safe_load_all(text) if document]
    crds = [document for document in documents if document["kind"] == "CustomResourceDefinition"]
    others = [document for document in documents if document["kind"] != "Deployment" and document not in crds]
    controllers = ["--controllers=*,-node-lifecycle-controller"]
    with SimulatedCluster(
        crds=crds, scheduler=False, arguments={"kube-controller-manager": controllers}
    ) as cluster:
        cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": SYSTEM}})
        apply = [_tool("kubectl"), "--kubeconfig", str(cluster.admin_kubeconfig), "apply", "-f", "-"]
        subprocess.run(apply, input=yaml.safe_dump_all(others), text=True, check=True, capture_output=True)
        yield Chart(cluster, documents)


@pytest.fixture(scope="session")
def clean(chart: Chart, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """A job's life to which nothing happened."""

    async def untroubled() -> Life:
        logs = tmp_path_factory.mktemp("clean")
        async with stage(chart, logs) as on, on.proxy() as proxy, on.operator(proxy):
            life = on.life("clean", proxy)
            await life.live()
            return life

    return asyncio.run(untroubled())


def _tool(name: str) -> str:
    command = ["hack/cluster", "tool", name]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return made.stdout.strip().splitlines()[-1]
