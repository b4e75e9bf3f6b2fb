"""Each cluster test gets a namespace that enforces the restricted profile, and a diary when it fails."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Json, Namespace

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "hack"))

from arena import Arena  # noqa: E402 - it imports from hack/
from rollouts import bucket  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    fixtures = getattr(item, "funcargs", {})
    place = fixtures.get("arena") or fixtures.get("namespace")
    if report.failed and isinstance(place, (Arena, Namespace)):
        report.sections.append((f"{place}", place.diary()))
        operator = Namespace("ratchet-system")
        report.sections.append(
            ("operator", operator.kubectl("logs", "-l", "app.kubernetes.io/name=ratchet", "--tail=80"))
        )
    return report


@pytest.fixture(scope="session", autouse=True)
def _cluster() -> None:
    home = Path(os.environ.get("RATCHET_HOME", Path.home() / ".cache" / "ratchet"))
    os.environ["PATH"] = f"{home / 'bin'}:{os.environ['PATH']}"
    os.environ.setdefault("KUBECONFIG", str(home / "kubeconfig"))
    if shutil.which("kubectl") is None or not Path(os.environ["KUBECONFIG"]).exists():
        pytest.fail(
            "there is no local cluster: run `make install`, or `make test-fast` for the tests without one"
        )


@pytest.fixture(scope="session")
def s3_secret() -> Json:
    secret = Namespace("ratchet-s3").find("secret", "s3-credentials")
    assert secret is not None
    return secret


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of the cluster's S3 server; one test takes that away, and the way to it ends with its pod."""
    with bucket.reached() as client:
        yield client


@pytest.fixture
def namespace(request: pytest.FixtureRequest, s3_secret: Json) -> Iterator[Namespace]:
    slug = request.node.name.removeprefix("test_").replace("_", "-").replace("[", "-").replace("]", "")[:50]
    with Namespace.fresh(f"t-{slug}".rstrip("-").lower(), s3_secret) as space:
        yield space


@pytest.fixture
def cartpole() -> Json:
    """The example that users begin with."""
    return yaml.safe_load((ROOT / "examples" / "cartpole-ppo.yaml").read_text())


@pytest.fixture
def endless(cartpole: Json) -> Json:
    """A job that goes on until a test has seen enough, with a checkpoint every other second.

    Every step of Pendulum counts (its vector form loses none to resets), so all fragments are of one size.
    """
    job = json.loads(json.dumps(cartpole))
    job["metadata"]["name"] = "endless"
    job["spec"]["environment"]["id"] = "Pendulum-v1"
    job["spec"]["stop"] = {"maxSteps": 1_000_000_000}
    job["spec"]["checkpoint"]["interval"] = "2s"
    return job
