"""The drift check: it sees what was changed, and does not see what only looks changed."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ratchet_operator.drift import WANTED_HASH, first_difference, merge_patch, quantity, stamped
from ratchet_operator.reconcile.children import difference

WANTED = {
    "kind": "Deployment",
    "metadata": {"name": "a", "labels": {"x": "1"}},
    "spec": {
        "replicas": 1,
        "containers": [
            {
                "name": "c",
                "image": "i",
                "args": ["--a", ""],
                "env": [{"name": "A", "value": "1"}],
                "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}},
                "volumeMounts": [],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "s", "emptyDir": {"sizeLimit": "1Gi"}}],
    },
}


def live() -> dict:
    return copy.deepcopy(stamped(WANTED))


def test_what_the_server_adds_is_no_drift():
    obj = live()
    obj["status"] = {"replicas": 1}
    obj["metadata"]["uid"] = "1"
    obj["spec"]["progressDeadlineSeconds"] = 600
    container = obj["spec"]["containers"][0]
    container["terminationMessagePath"] = "/dev/termination-log"
    container["env"].insert(0, {"name": "INJECTED", "value": "by someone else"})
    del container["volumeMounts"]
    obj["spec"]["containers"].insert(0, {"name": "sidecar"})

    assert difference(stamped(WANTED), obj) is None


@pytest.mark.parametrize(("cpu", "memory"), [("0.25", "536870912"), ("0.250", "0.5Gi")])
def test_a_quantity_written_another_way_is_no_drift(cpu, memory):
    obj = live()
    obj["spec"]["containers"][0]["resources"]["requests"] = {"cpu": cpu, "memory": memory}
    obj["spec"]["volumes"][1]["emptyDir"]["sizeLimit"] = "1024Mi"

    assert difference(stamped(WANTED), obj) is None


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("spec", "replicas"), 3, "spec.replicas: 3 -> 1"),
        (("spec", "containers", 0, "image"), "evil", "spec.containers[0].image: 'evil' -> 'i'"),
        (("spec", "containers", 0, "args"), ["--a"], "spec.containers[0].args: 1 items -> 2 items"),
        (
            ("spec", "containers", 0, "env"),
            [],
            "spec.containers[0].env[0]: None -> {'name': 'A', 'value': '1'}",
        ),
        (("spec", "containers", 0, "resources", "requests", "cpu"), "1", "requests.cpu: '1' -> '250m'"),
        (("metadata", "labels"), {}, "metadata.labels.x: None -> '1'"),
    ],
)
def test_the_first_difference_is_named(path, value, named):
    obj = live()
    parent = obj
    for part in path[:-1]:
        parent = parent[part]
    parent[path[-1]] = value

    assert named in (difference(stamped(WANTED), obj) or "")


def test_what_we_no_longer_want_is_drift():
    less = copy.deepcopy(WANTED)
    del less["spec"]["volumes"][1]

    assert difference(stamped(less), live()) == "something is no longer wanted"


def test_an_ignored_field_does_not_change_the_hash():
    other = copy.deepcopy(WANTED)
    other["spec"]["replicas"] = 9
    ignoring = (("spec", "replicas"),)

    assert (
        stamped(other, ignoring)["metadata"]["annotations"][WANTED_HASH]
        == stamped(WANTED, ignoring)["metadata"]["annotations"][WANTED_HASH]
    )
    assert stamped(other)["metadata"]["annotations"] != stamped(WANTED)["metadata"]["annotations"]


def test_true_is_not_one():
    assert first_difference({"a": True}, {"a": 1}) == "a: 1 -> True"


def test_something_that_is_no_quantity():
    assert quantity("many") is None
    assert quantity("100m") == quantity("0.1")
    assert quantity("1E") == quantity(10**18)


JSON = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=2), JSON, max_size=4)


def merged(live, patch):
    """RFC 7386, as in the RFC."""
    if not isinstance(patch, dict):
        return patch
    result = dict(live) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


@given(OBJECTS, OBJECTS)
def test_the_merge_patch_turns_one_into_the_other(one, other):
    assert merged(one, merge_patch(one, other)) == other


@given(OBJECTS)
def test_the_same_needs_no_patch(one):
    assert merge_patch(one, copy.deepcopy(one)) == {}


def test_a_selector_is_compared_as_a_whole():
    wanted = {"spec": {"selector": {"a": "1"}}}

    assert first_difference(wanted, {"spec": {"selector": {"a": "1"}}}) is None
    assert "spec.selector" in (first_difference(wanted, {"spec": {"selector": {"a": "1", "b": "2"}}}) or "")


PORTS = st.lists(
    st.fixed_dictionaries(
        {"port": st.sampled_from([53, 80])},
        optional={"name": st.sampled_from("ab"), "protocol": st.sampled_from(["TCP", "UDP"])},
    )
)


@given(PORTS)
def test_nothing_differs_from_itself(ports):
    """Not even one port over two protocols, which a port's number does not tell apart."""
    assert first_difference({"ports": ports}, {"ports": copy.deepcopy(ports)}) is None


def test_a_target_that_the_server_writes_another_way_is_no_drift():
    wanted, live = (
        {"metadata": {}, "spec": {"metrics": [{"pods": {"target": {"averageValue": value}}}]}}
        for value in ("1000", "1k")
    )

    assert difference(wanted, live) is None
