"""What the chart asks of the Prometheus operator is what its definitions take, word for word."""

import sys
from pathlib import Path

import pytest
import yaml
from test_chart import EVERYTHING, of_kind, rendered

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "hack"))

from localcluster import gomods  # noqa: E402
from localcluster.simulated import SimulatedCluster  # noqa: E402

MODULE = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
KINDS = ("ServiceMonitor", "PodMonitor", "PrometheusRule")


@pytest.mark.cluster
def test_the_prometheus_operators_definitions_take_monitors_and_rules() -> None:
    folder = gomods.module_folder(MODULE) / "example" / "prometheus-operator-crd"
    plurals = {kind: f"{kind.lower()}s" for kind in KINDS}
    crds = [
        yaml.safe_load((folder / f"monitoring.coreos.com_{plural}.yaml").read_text())
        for plural in plurals.values()
    ]
    asked_for = of_kind(rendered(*EVERYTHING), *KINDS)
    assert {one["kind"] for one in asked_for} == {*KINDS}
    with SimulatedCluster(crds=crds, scheduler=False) as cluster:
        for one in asked_for:
            one["metadata"]["namespace"] = "default"
            path = f"/apis/{one['apiVersion']}/namespaces/default/{plurals[one['kind']]}"
            cluster.request("POST", f"{path}?dryRun=All&fieldValidation=Strict", one)
