"""Each cluster test gets a namespace that enforces the restricted profile, and a diary when it fails."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.config import Config
from cluster import Json, Namespace, forwarded

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    namespace = getattr(item, "funcargs", {}).get("namespace")
    if report.when == "call" and report.failed and isinstance(namespace, Namespace):
        report.sections.append((f"namespace {namespace.name}", namespace.diary()))
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


@pytest.fixture(scope="session")
def s3(s3_secret: Json) -> Iterator[Any]:
    """A client of the cluster's S3 server."""
    key = {name: base64.b64decode(value).decode() for name, value in s3_secret["data"].items()}
    with forwarded("ratchet-s3", "service/s3", 9000) as address:
        yield boto3.client(
            "s3",
            endpoint_url=f"http://{address}",
            region_name="us-east-1",
            aws_access_key_id=key["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=key["AWS_SECRET_ACCESS_KEY"],
            config=Config(s3={"addressing_style": "path"}),
        )


@pytest.fixture
def namespace(request: pytest.FixtureRequest, s3_secret: Json) -> Iterator[Namespace]:
    slug = request.node.name.removeprefix("test_").replace("_", "-").replace("[", "-").replace("]", "")[:50]
    name = f"t-{slug}".rstrip("-").lower()
    space = Namespace(name)
    subprocess.run(
        ["kubectl", "delete", "namespace", name, "--ignore-not-found", "--wait"], check=True, timeout=180
    )
    space.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }
    )
    space.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s3-credentials"},
            "data": s3_secret["data"],
        }
    )
    yield space
    subprocess.run(["kubectl", "delete", "namespace", name, "--wait=false"], check=True, timeout=60)


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
