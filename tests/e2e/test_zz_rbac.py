"""What the operator asked of the API server while all the other cluster tests ran, by the server's audit log.

The name puts this file at the end. hack/localcluster/apiserver says what is written down.
"""

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Json, Namespace, eventually

ROOT = Path(__file__).parents[2]
RELEASE, OPERATOR = "ratchet", Namespace("ratchet-system")
ACCOUNT = f"system:serviceaccount:{OPERATOR.name}:{RELEASE}"
BEGUN = datetime.now(UTC)
"""When tests were collected, and so before the first of them ran."""

Use = tuple[str, str, str]
"""Verb, API group, and resource with its subresource."""


def time_of(event: Json) -> datetime:
    return datetime.fromisoformat(event["requestReceivedTimestamp"])


def log_files() -> Iterator[str]:
    """The audit log of this run from the control plane's disk, in files as they were rotated."""
    (node,) = OPERATOR.list("nodes", "node-role.kubernetes.io/control-plane")
    folder = f"/api/v1/nodes/{node['metadata']['name']}/proxy/logs/ratchet/"
    index = OPERATOR.kubectl("get", "--raw", folder)
    for name in sorted(set(re.findall(r'href="(audit[^"]*\.log)"', index))):
        rotated = re.fullmatch(r"audit-(.+)T(\d\d)-(\d\d)-(\d\d)\.\d+\.log", name)
        if rotated:
            day, *clock = rotated.groups()
            if datetime.fromisoformat(f"{day}T{':'.join(clock)}+00:00") < BEGUN:
                continue
        yield OPERATOR.kubectl("get", "--raw", folder + name)


def events() -> list[Json]:
    """What the operator asked for in this run."""
    found = [json.loads(line) for text in log_files() for line in text.splitlines()]
    return [one for one in found if one["user"]["username"] == ACCOUNT and time_of(one) >= BEGUN]


def used(event: Json) -> set[Use]:
    """A server-side apply that made its object needed `create` beside the `patch` that is written down."""
    it = event.get("objectRef")
    if it is None:
        return set()
    resource = "/".join(part for part in (it["resource"], it.get("subresource")) if part)
    verbs = {event["verb"]}
    if event["verb"] == "patch" and event["responseStatus"].get("code") == 201:
        verbs.add("create")
    return {(verb, it.get("apiGroup", ""), resource) for verb in verbs}


def helm(*arguments: str, stdin: str | None = None) -> str:
    found = subprocess.run(
        ["hack/cluster", "tool", "helm"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return subprocess.run(
        [found.stdout.strip().splitlines()[-1], *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def granted() -> set[Use]:
    """All that the chart's roles let the operator do, with the release's values and network policies on."""
    values = helm("get", "values", RELEASE, "--namespace", OPERATOR.name, "--output", "yaml")
    text = helm(
        "template", RELEASE, str(ROOT / "charts" / "ratchet"), "--namespace", OPERATOR.name,
        "--values", "-", "--set", "networkPolicies.enabled=true", stdin=values,
    )  # fmt: skip
    documents: list[Any] = [one for one in yaml.safe_load_all(text) if one]
    bound = {
        (one["roleRef"]["kind"], one["roleRef"]["name"])
        for one in documents
        if one["kind"] in ("RoleBinding", "ClusterRoleBinding")
    }
    return {
        (verb, group, resource)
        for role in documents
        if (role["kind"], role["metadata"]["name"]) in bound
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def not_run(session: pytest.Session) -> list[str]:
    """The tests of this folder that this run left out."""
    chosen = {(item.path, getattr(item, "originalname", item.name)) for item in session.items}
    return [
        f"{path.name}::{node.name}"
        for path in sorted(Path(__file__).parent.glob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and (path, node.name) not in chosen
    ]


def test_the_log_holds_what_the_operator_does() -> None:
    """Or the two below would hold whatever happened: the operator looks at its Lease every three seconds."""
    eventually(
        "a look at the Lease is written down",
        lambda: any(("get", "coordination.k8s.io", "leases") in used(event) for event in events()),
        deadline=30,
    )


def test_the_operator_was_forbidden_nothing() -> None:
    """Quotas, admission and dying namespaces may refuse what its roles allow."""
    forbidden = {
        f"{event['verb']} {event['requestURI'].partition('?')[0]}: "
        + event.get("annotations", {}).get("authorization.k8s.io/reason", "")
        for event in events()
        if event.get("annotations", {}).get("authorization.k8s.io/decision") == "forbid"
    }
    assert forbidden == set()


def test_the_operator_is_granted_nothing_that_it_did_not_use(request: pytest.FixtureRequest) -> None:
    missing = not_run(request.session)
    if missing:
        pytest.skip(f"only `pytest tests/e2e` shows all that is used: {len(missing)} tests did not run")
    if request.session.testsfailed:
        pytest.skip(f"{request.session.testsfailed} tests failed, and may not have come to what they use")
    unused = granted() - {use for event in events() for use in used(event)}
    assert unused == set()
