"""`ratchet rollout` against a real API server, where a test plays the operator that writes the status."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rolloutstates as states
import yaml
from rolloutstates import Resource
from typer.testing import CliRunner

from ratchet.api.crd import definition
from ratchet.api.v1alpha1.kinds import KINDS
from ratchet.cli.main import app
from ratchet.cli.outcome import Exit

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "hack"))

from localcluster.shell import wait_until  # noqa: E402
from localcluster.simulated import SimulatedCluster  # noqa: E402

pytestmark = pytest.mark.cluster

OBJECTS = "/apis/ratchet.dev/v1alpha1/namespaces/default/policydeployments"
SECONDS = 30.0


class Operator:
    """Writes the status of one PolicyDeployment, as an operator would."""

    def __init__(self, server: SimulatedCluster, name: str) -> None:
        self.server, self.name = server, name

    @property
    def now(self) -> Resource:
        return self.server.request("GET", f"{OBJECTS}/{self.name}")

    @property
    def ordered(self) -> str | None:
        return self.now["metadata"].get("annotations", {}).get("ratchet.dev/rollout")

    def say(self, recorded: Resource, **more: Any) -> None:
        change = {"status": {**recorded["status"], **more}}
        path = f"{OBJECTS}/{self.name}/status"
        self.server.request("PUT", path, {**self.now, **change})


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatedCluster]:
    with SimulatedCluster(crds=[definition(kind) for kind in KINDS.values()], scheduler=False) as cluster:
        yield cluster


@pytest.fixture
def operator(server: SimulatedCluster, request: pytest.FixtureRequest) -> Iterator[Operator]:
    name = f"rollout-{abs(hash(request.node.name)) % 10**6}"
    body = {**states.PENDING, "metadata": {"name": name}, "spec": {"source": states.JOB}}
    server.request("POST", OBJECTS, {key: value for key, value in body.items() if key != "status"})
    yield Operator(server, name)
    server.request("DELETE", f"{OBJECTS}/{name}")


def run(server: SimulatedCluster, *arguments: str) -> Any:
    flags = ["-n", "default", "--kubeconfig", str(server.admin_kubeconfig)]
    result = CliRunner().invoke(app, ["rollout", *arguments, *flags])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def meanwhile(act: Callable[[], None]) -> None:
    threading.Thread(target=act, daemon=True).start()


def obeying(operator: Operator, then: Resource) -> None:
    """Have the next order taken, and lead to a state."""

    def obey() -> None:
        if wait_until(lambda: operator.ordered is not None, seconds=SECONDS, every=0.05):
            operator.say(then, command=operator.ordered)

    meanwhile(obey)


def test_a_new_object_is_shown_with_the_defaults_that_the_server_filled_in(
    server: SimulatedCluster, operator: Operator
):
    told = run(server, "status", operator.name)

    assert told.exit_code == Exit.OK
    assert f"{operator.name} · Pending · canary" in told.stdout
    assert operator.name in run(server, "status").stdout


def test_the_server_keeps_every_field_that_the_status_shows(server: SimulatedCluster, operator: Operator):
    for recorded in states.LEGAL:
        operator.say(recorded)
        found = json.loads(run(server, "status", operator.name, "-o", "json").stdout)
        assert found["status"] == recorded["status"]


def test_a_watch_follows_to_the_promotion(server: SimulatedCluster, operator: Operator):
    operator.say(states.SURGING)

    def go_on() -> None:
        for state in (states.STAGE_2, states.BAKING, states.PROMOTED):
            operator.say(state)

    meanwhile(go_on)
    result = run(server, "status", operator.name, "--watch", "--timeout", "60s")

    assert result.exit_code == Exit.OK
    assert result.stdout.endswith("promoted: aaaaaaaaaaaa serves everybody\n")


def test_a_watch_ends_with_its_time(server: SimulatedCluster, operator: Operator):
    operator.say(states.STAGE_2)

    result = run(server, "status", operator.name, "--watch", "--timeout", "1s")

    assert result.exit_code == Exit.TIMED_OUT
    assert "timed out waiting" in result.stderr


@pytest.mark.parametrize("verb", ["promote", "pause", "abort"])
def test_an_order_ends_once_the_operator_has_taken_it(
    verb: str, server: SimulatedCluster, operator: Operator
):
    operator.say(states.STAGE_2)
    obeying(operator, states.FAILING)

    result = run(server, verb, operator.name)

    assert result.exit_code == Exit.OK, result.stderr
    assert f"{operator.name}: {verb} taken. RollingBack: 5% of 180" in result.stdout
    assert str(operator.ordered).startswith(f"{verb}/")


def test_orders_leave_the_spec_and_other_annotations_alone(server: SimulatedCluster, operator: Operator):
    operator.say(states.STAGE_2)
    path, patch = f"{OBJECTS}/{operator.name}", "application/merge-patch+json"
    server.request("PATCH", path, {"metadata": {"annotations": {"mine": "stays"}}}, patch)
    before = operator.now

    obeying(operator, states.PAUSED)
    run(server, "pause", operator.name)

    assert operator.now["spec"] == before["spec"]
    assert operator.now["metadata"]["generation"] == before["metadata"]["generation"]
    assert operator.now["metadata"]["annotations"]["mine"] == "stays"


def test_what_is_not_there_is_told_from_a_kind_that_is_not_there(
    server: SimulatedCluster, operator: Operator
):
    missing = run(server, "abort", "nobody")

    assert missing.exit_code == Exit.NO
    assert f"no PolicyDeployment nobody in namespace default: there are {operator.name}" in missing.stderr


def test_the_examples_are_taken_by_the_server_as_they_stand(server: SimulatedCluster):
    found = [
        document
        for path in sorted((ROOT / "examples").glob("policy-deployment*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
        if document["kind"] == "PolicyDeployment"
    ]

    assert len(found) == 3
    for document in found:
        server.request("POST", f"{OBJECTS}?dryRun=All&fieldValidation=Strict", document)
