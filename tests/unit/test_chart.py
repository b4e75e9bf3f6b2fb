"""The chart, rendered by helm: least privilege, restricted pods, CRDs that stay, scopes."""

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "ratchet"
EVERYTHING = (
    "replicas=3",
    "networkPolicies.enabled=true",
    "monitoring.monitors.enabled=true",
    "monitoring.rules.enabled=true",
    "monitoring.dashboards.enabled=true",
    "nodes.visible=true",
    "rbac.ownerReferencesPermissionEnforcement=true",
    "priorityClassName=high",
    "podLabels.a=b",
    "podAnnotations.c=d",
    "serviceAccount.annotations.e=f",
    "monitoring.monitors.labels.g=h",
    "monitoring.rules.labels.i=j",
    "imagePullSecrets[0].name=registry",
    "nodeSelector.disk=ssd",
    "tolerations[0].key=spot",
)
SCOPES = {
    "whole cluster": (),
    "two namespaces": ("watchNamespaces={team-a,team-b}",),
    "everything": EVERYTHING,
}


@cache
def helm() -> str:
    """Path of the helm that the project builds; made on the first call."""
    made = subprocess.run(
        ["hack/cluster", "tool", "helm"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.fail(f"hack/cluster tool helm: {made.stderr or made.stdout}")
    return made.stdout.strip().splitlines()[-1]


def template(*settings: str, release: str = "ratchet") -> subprocess.CompletedProcess[str]:
    flags = [flag for setting in settings for flag in ("--set", setting)]
    command = [helm(), "template", release, str(CHART), "--namespace", "ratchet-system", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@cache
def rendered(*settings: str, release: str = "ratchet") -> list[dict[str, Any]]:
    done = template(*settings, release=release)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(documents: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] in kinds]


def test_the_chart_passes_helms_own_linter():
    done = subprocess.run(
        [helm(), "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("settings", SCOPES.values(), ids=SCOPES)
def test_no_permission_is_a_wildcard(settings: tuple[str, ...]):
    roles = of_kind(rendered(*settings), "Role", "ClusterRole")
    assert roles
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in json.dumps(rule), role["metadata"]["name"]


@pytest.mark.parametrize("settings", SCOPES.values(), ids=SCOPES)
def test_secrets_can_be_made_and_read_by_name_and_never_listed(settings: tuple[str, ...]):
    verbs = {
        verb
        for role in of_kind(rendered(*settings), "Role", "ClusterRole")
        for rule in role["rules"]
        if "secrets" in rule["resources"]
        for verb in rule["verbs"]
    }
    assert verbs == {"get", "create"}


@pytest.mark.parametrize("settings", SCOPES.values(), ids=SCOPES)
def test_every_pod_passes_the_restricted_profile(settings: tuple[str, ...]):
    documents = rendered(*settings)
    specs = [one["spec"]["template"]["spec"] for one in of_kind(documents, "Deployment")]
    specs += [one["spec"] for one in of_kind(documents, "Pod")]
    assert len(specs) == 2
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"requests", "limits"} <= container["resources"].keys()


def test_crds_are_installed_kept_and_can_be_left_out():
    definitions = of_kind(rendered(), "CustomResourceDefinition")
    assert len(definitions) == len(list((ROOT / "crds").glob("*.yaml")))
    for definition in definitions:
        assert definition["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert of_kind(rendered("crds.install=false"), "CustomResourceDefinition") == []


def test_watching_namespaces_needs_roles_only_and_nothing_of_the_cluster():
    documents = rendered("watchNamespaces={team-a,team-b}")

    assert of_kind(documents, "ClusterRole", "ClusterRoleBinding") == []
    operators = [one for one in of_kind(documents, "Role") if one["metadata"]["name"] == "ratchet-operator"]
    assert [one["metadata"]["namespace"] for one in operators] == ["team-a", "team-b"]
    assert environment(documents)["RATCHET_NAMESPACES"] == "team-a,team-b"
    assert environment(documents)["RATCHET_NODES_VISIBLE"] == "false"


def test_both_scopes_give_the_same_rules():
    name = "ratchet-operator"
    (cluster,) = [one for one in of_kind(rendered(), "ClusterRole") if one["metadata"]["name"] == name]
    for role in of_kind(rendered("watchNamespaces={team-a,team-b}"), "Role"):
        if role["metadata"]["name"] == name:
            assert role["rules"] == cluster["rules"]


def test_two_releases_of_one_scope_meet_in_the_names_of_their_roles():
    """So that Helm refuses the second: an object that another release owns is an error."""

    def names(kind: str, *settings: str, release: str) -> set[tuple[str, str]]:
        found = of_kind(rendered(*settings, release=release), kind)
        return {(one["metadata"].get("namespace", ""), one["metadata"]["name"]) for one in found}

    def met(kind: str, *settings: str) -> set[tuple[str, str]]:
        return names(kind, *settings, release="ratchet") & names(kind, *settings, release="other")

    assert met("ClusterRole") == {("", "ratchet-operator")}
    both = "watchNamespaces={team-a}"
    assert ("team-a", "ratchet-operator") in met("Role", both)
    assert met("ClusterRole", both, "nodes.visible=true") == set()


def test_policies_can_be_taken_away_when_they_are_off_and_made_only_when_they_are_on():
    def verbs(*settings: str) -> set[str]:
        roles = of_kind(rendered(*settings), "ClusterRole")
        rules = [rule for role in roles for rule in role["rules"] if "networkpolicies" in rule["resources"]]
        return {verb for rule in rules for verb in rule["verbs"]}

    assert verbs() == {"list", "watch", "delete"}
    assert verbs("networkPolicies.enabled=true") == {"list", "watch", "delete", "create", "patch"}


def test_the_documented_permissions_are_the_granted_ones():
    def granted(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
        return {
            (group, resource, verb)
            for rule in rules
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }

    documented: set[tuple[str, str, str]] = set()
    text = (ROOT / "docs" / "decisions" / "0002-operator.md").read_text()
    for line in text.partition("| --- |")[2].partition("\n\n")[0].splitlines()[1:]:
        _, group, resources, verbs, _ = (cell.strip() for cell in line.strip("|").split("|"))
        documented |= {
            (group.strip('"'), resource, verb)
            for resource in resources.partition(", resourceNames")[0].split(", ")
            for verb in verbs.split(", ")
        }
    roles = of_kind(rendered("networkPolicies.enabled=true", "rbac.aggregate=false"), "Role", "ClusterRole")
    assert documented == granted([rule for role in roles for rule in role["rules"]])


def test_nodes_are_read_by_a_role_of_its_own_and_only_if_visible():
    def sees_nodes(*settings: str) -> bool:
        roles = of_kind(rendered(*settings), "Role", "ClusterRole")
        return any("nodes" in rule["resources"] for role in roles for rule in role["rules"])

    assert sees_nodes()
    assert not sees_nodes("nodes.visible=false")
    assert sees_nodes("watchNamespaces={team-a}", "nodes.visible=true")


def environment(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (deployment,) = of_kind(documents, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_the_operators_settings_are_what_the_operator_reads():
    told = environment(rendered("images.trainer.repository=example.com/t", "images.trainer.tag=v2"))

    assert told["RATCHET_TRAINER_IMAGE"] == "example.com/t:v2"
    source = (ROOT / "operator" / "ratchet_operator" / "settings.py").read_text()
    for name in told:
        assert name in source, name


def test_a_single_operator_has_no_budget_and_several_have_one():
    assert of_kind(rendered(), "PodDisruptionBudget") == []
    (budget,) = of_kind(rendered("replicas=2"), "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1


def test_services_and_budgets_select_the_operators_pods_and_not_the_test():
    documents = rendered(*EVERYTHING)
    (deployment,) = of_kind(documents, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    (test,) = of_kind(documents, "Pod")
    for one in of_kind(documents, "Service", "PodDisruptionBudget"):
        selector = one["spec"]["selector"]
        wanted = selector.get("matchLabels", selector).items()
        assert wanted <= labels
        assert not wanted <= test["metadata"]["labels"].items()


def test_people_with_view_and_edit_get_ratchets_objects_too():
    roles = {one["metadata"]["name"]: one["metadata"]["labels"] for one in of_kind(rendered(), "ClusterRole")}
    assert roles["ratchet-view"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert roles["ratchet-edit"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert roles["ratchet-edit"]["rbac.authorization.k8s.io/aggregate-to-admin"] == "true"


def test_people_may_do_with_every_kind_what_their_role_says():
    """As the definitions have them: each kind, and those of its subresources that people use."""
    viewed, edited = set[str](), set[str]()
    for definition in of_kind(rendered(), "CustomResourceDefinition"):
        plural = definition["spec"]["names"]["plural"]
        subresources = definition["spec"]["versions"][0].get("subresources", {})
        viewed |= {plural, *(f"{plural}/status" for name in subresources if name == "status")}
        edited |= {plural, *(f"{plural}/scale" for name in subresources if name == "scale")}
    rules = {one["metadata"]["name"]: one["rules"] for one in of_kind(rendered(), "ClusterRole")}
    assert {name for rule in rules["ratchet-view"] for name in rule["resources"]} == viewed
    assert {name for rule in rules["ratchet-edit"] for name in rule["resources"]} == edited


def test_nothing_for_prometheus_or_grafana_comes_unasked():
    kinds = {document["kind"] for document in rendered()}
    assert not kinds & {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"}


def test_monitors_find_every_page_and_keep_the_labels_that_metrics_bring():
    documents = rendered(*EVERYTHING)
    (service,) = of_kind(documents, "Service")
    (operator,) = of_kind(documents, "ServiceMonitor")
    assert operator["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    pods = {
        one["spec"]["selector"]["matchLabels"]["ratchet.dev/component"]: one["spec"]
        for one in of_kind(documents, "PodMonitor")
    }
    assert pods.keys() == {"trainer", "server"}
    for spec in pods.values():
        assert spec["namespaceSelector"] == {"any": True}
    assert pods["server"]["podTargetLabels"] == ["ratchet.dev/policy-deployment", "ratchet.dev/revision"]
    ends = [
        *operator["spec"]["endpoints"],
        *(end for spec in pods.values() for end in spec["podMetricsEndpoints"]),
    ]
    assert all(end["honorLabels"] and end["port"] == "http" for end in ends)
    for one in of_kind(documents, "ServiceMonitor", "PodMonitor"):
        assert one["metadata"]["labels"]["g"] == "h"


def test_monitors_of_some_namespaces_look_into_no_other():
    documents = rendered("watchNamespaces={team-a,team-b}", "monitoring.monitors.enabled=true")
    for one in of_kind(documents, "PodMonitor"):
        assert one["spec"]["namespaceSelector"] == {"matchNames": ["team-a", "team-b"]}


def test_rules_and_dashboards_reach_the_cluster_as_they_are_in_the_chart():
    documents = rendered(*EVERYTHING)
    (rules,) = of_kind(documents, "PrometheusRule")
    assert rules["spec"] == yaml.safe_load((CHART / "rules" / "ratchet.yaml").read_text())
    assert rules["metadata"]["labels"]["i"] == "j"
    maps = of_kind(documents, "ConfigMap")
    files = {path.name: path.read_text() for path in (CHART / "dashboards").glob("*.json")}
    assert {key: text for one in maps for key, text in one["data"].items()} == files
    for one in maps:
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert len(json.dumps(one)) < 262_144  # else kubectl apply can't


@pytest.mark.parametrize(
    "setting",
    [
        "replica=2",
        "images.pullPolicy=Sometimes",
        "watchNamespaces={Team_A}",
        "logLevel=LOUD",
        "monitoring.monitors.interval=often",
    ],
)
def test_a_wrong_value_is_refused_by_the_values_schema(setting: str):
    done = template(setting)
    assert done.returncode != 0
    assert "schema" in done.stderr


def test_values_and_their_schema_have_the_same_places():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(at: str, value: Any, part: dict[str, Any]) -> None:
        part = schema["definitions"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        if "properties" in part and at != "resources":  # which are free to have more
            assert value.keys() == part["properties"].keys() - {"global"}, at
            assert part["additionalProperties"] is False, at
            for key, inner in value.items():
                compare(f"{at}.{key}".strip("."), inner, part["properties"][key])

    compare("", values, schema)
