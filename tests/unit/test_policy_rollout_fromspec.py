"""What a spec means to the machine and to the judge."""

from typing import Any

import pytest
from ratchet_operator.rollout.fromspec import court_of, rules_of
from ratchet_operator.rollout.values import GuardPolicy, Stage

from ratchet.api.v1alpha1 import PolicyDeploymentSpec

SOURCE = {"type": "TrainingJob", "trainingJob": {"jobRef": {"name": "cartpole"}}}


def spec(**members: Any) -> PolicyDeploymentSpec:
    return PolicyDeploymentSpec.model_validate({"source": SOURCE, **members})


@pytest.mark.parametrize(
    ("strategy", "stages"),
    [
        ({"type": "AllAtOnce"}, ()),
        ({"type": "BlueGreen", "blueGreen": {"approval": True}}, (Stage(100, True, 0.0, True),)),
        ({"type": "Shadow", "shadow": {"then": "Promote"}}, (Stage(100, True, 300, False),)),
        (
            {"canary": {"steps": [{"weight": 5, "approval": True}, {"weight": 50, "minDuration": "1m"}]}},
            (Stage(5, False, 30, True), Stage(50, False, 60, False)),
        ),
    ],
)
def test_a_strategy_is_its_stages(strategy: dict[str, Any], stages: tuple[Stage, ...]):
    assert rules_of(spec(strategy=strategy)).stages == stages


def test_the_shares_of_all_tests_sum_to_the_false_rollback_rate():
    guards = {
        "errorRate": {"limit": 0.1, "share": 2},
        "latency": {"limitMilliseconds": 20},
        "episodeReturn": {"enabled": True, "baseline": 450},
        "falseRollbackRate": 0.1,
    }
    court = court_of(spec(guards=guards))
    assert sum(court.alphas.values()) == pytest.approx(0.1)
    assert court.alphas["errorRate"] == court.alphas["errorRateLimit"] == court.alphas["fallbackRate"]
    assert {test.name for test in court.tested} == set(court.alphas)
    assert court.alphas["latency"] == court.alphas["episodeReturnBaseline"] == pytest.approx(0.1 / 5 / 2)


def test_drift_from_training_shares_what_drift_has_and_is_off_unless_it_is_asked_for():
    def alphas(**drift: float) -> dict[str, float]:
        return court_of(spec(guards={"actionDrift": {"enabled": True, **drift}})).alphas

    alone, both = alphas(), alphas(maxDistanceFromTraining=0.4)
    assert "actionDriftTraining" not in alone
    assert both["actionDrift"] == both["actionDriftTraining"] == pytest.approx(alone["actionDrift"] / 2)
    assert sum(both.values()) == pytest.approx(0.05)


def test_guards_that_are_off_judge_nothing_and_take_no_share():
    off = {name: {"enabled": False} for name in ("fallbackRate", "latency", "nan", "restarts")}
    court = court_of(spec(guards=off))
    assert court.alphas == {"errorRate": 0.05}
    assert [wire.name for wire in court.wires] == ["maskViolations"]


def test_a_guards_policy_holds_for_each_of_its_tests():
    guards = {"errorRate": {"limit": 0.1, "onFail": "Hold", "onSourceDown": "Advance"}}
    policies = rules_of(spec(guards=guards)).policies
    assert policies["errorRate"] == policies["errorRateLimit"] == GuardPolicy("Hold", "Hold", "Advance")
