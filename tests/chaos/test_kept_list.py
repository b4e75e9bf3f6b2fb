"""On a real API server: a job's trainer is told what servers start from."""

import asyncio
import json
from pathlib import Path

from lives import JOB, SPEC, eventually
from operators import Chart
from ratchet_operator.kinds import API_VERSION, CONFIG_MAP, POLICY_DEPLOYMENT, TRAINING_JOB
from stage import Stage, stage

NAMESPACE = "kept"


def test_a_trainer_is_told_what_servers_start_from_until_they_are_gone(chart: Chart, tmp_path: Path):
    asyncio.run(_told(chart, tmp_path))


async def _told(chart: Chart, logs: Path) -> None:
    async with stage(chart, logs) as on, on.proxy() as proxy, on.operator(proxy):
        await on.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        job = {"apiVersion": API_VERSION, "kind": TRAINING_JOB.kind, "metadata": {"name": JOB}, "spec": SPEC}
        made = await on.api.request("POST", TRAINING_JOB.path(NAMESPACE), job)
        assert made is not None
        await eventually("nothing has to stay", lambda: _keeps(on, []))

        folder = f"{NAMESPACE}/{JOB}/{made['metadata']['uid']}/manifests"
        s3 = {"bucket": "bucket", "prefix": f"{folder}/000000000100-1-100.json"}
        source = {"type": "Checkpoint", "checkpoint": {"s3": s3, "digest": f"sha256:{1:064x}"}}
        served = {
            "apiVersion": API_VERSION,
            "kind": POLICY_DEPLOYMENT.kind,
            "metadata": {"name": "served"},
            "spec": {"source": source, "replicas": 1},
        }
        await on.api.request("POST", POLICY_DEPLOYMENT.path(NAMESPACE), served)
        await eventually("what serves stays", lambda: _keeps(on, ["000000000100-1-100"]))

        await on.api.request("DELETE", POLICY_DEPLOYMENT.path(NAMESPACE, "served"))
        await eventually("it may go", lambda: _keeps(on, []))


async def _keeps(on: Stage, names: list[str]) -> bool:
    """Whether these are what the trainer is told."""
    found = await on.api.request("GET", CONFIG_MAP.path(NAMESPACE, f"{JOB}-config"))
    return found is not None and json.loads(found["data"]["kept.json"]) == names
