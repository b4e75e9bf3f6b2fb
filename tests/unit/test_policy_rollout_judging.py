"""What pods' answers are worth: each counted once, each pod a stratum, nothing of before the trial."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from ratchet_operator.rollout.fromspec import court_of
from ratchet_operator.rollout.judging import PODS_KEPT, Evidence, PodAnswer, judge
from simulatedrollout import Behaviour, Simulation, World, spec_with, verdicts

from ratchet.api.v1alpha1.serverstats import LATENCY_BOUNDS_SECONDS, ServerStats
from ratchet.evidence import Decision, Verdict

OLD, NEW = "old", "new"
START = datetime(2026, 1, 1, tzinfo=UTC)
EVERYTHING = {"episodeReturn": {"enabled": True}, "actionDrift": {"enabled": True}}
BUCKETS = len(LATENCY_BOUNDS_SECONDS) + 1


def tally(arm: str, policy: str, requests: int, bad: int = 0, **members: Any) -> dict[str, Any]:
    """Of a pod; `bad` errors of the canary, or of the policy itself."""
    reason = "policy-error" if arm == "stable" else "canary-error"
    errors = members.pop("errors", {reason: bad} if bad else {})
    answered = requests if arm == "stable" else requests - sum(errors.values())
    counts = [0] * 10 + [requests] + [0] * (BUCKETS - 11)
    return {
        "arm": arm,
        "digest": policy,
        "requests": requests,
        "predictions": answered,
        "errors": errors,
        "fallbacks": {"scripted": errors} if errors else {},
        "latency": {"counts": counts},
        **members,
    }


def answer(pod: str, uptime: float, *tallies: dict[str, Any], arm: str = OLD, **members: Any) -> PodAnswer:
    """Of a pod that has run for so long."""
    stats = {
        "incarnation": "one",
        "uptimeSeconds": uptime,
        "ready": True,
        "draining": False,
        "current": f"policy of {arm}",
        "latencyBoundsSeconds": LATENCY_BOUNDS_SECONDS,
        "arms": tallies,
        **members,
    }
    return PodAnswer(pod, arm, ServerStats.model_validate(stats))


def own(requests: int, bad: int = 0, **members: Any) -> dict[str, Any]:
    return tally("stable", f"policy of {OLD}", requests, bad, **members)


def theirs(requests: int, bad: int = 0, **members: Any) -> dict[str, Any]:
    return tally("canary", f"policy of {NEW}", requests, bad, **members)


CANARY_POD = answer("canary", 1.0, arm=NEW)


class Judged:
    """A judge that is asked again and again, as the operator does."""

    def __init__(self, *first: PodAnswer, **guards: Any) -> None:
        self.court = court_of(spec_with(guards=guards))
        self.evidence, self.second, self.decisions = Evidence(), 0.0, tuple[Decision, ...]()
        self.look(CANARY_POD, *first)

    def look(self, *answers: PodAnswer, after: float = 1.0, restarts: int = 0, trial: str = "t") -> "Judged":
        self.second += after
        now = START + timedelta(seconds=self.second)
        self.evidence, self.decisions = judge(
            self.court, self.evidence, trial, NEW, OLD, answers, restarts, now
        )
        return self

    def of(self, guard: str) -> Decision:
        return next(one for one in self.decisions if one.guard == guard)

    @property
    def counted(self) -> tuple[int, float, int, float]:
        rates = self.evidence.rates["errorRate"]
        return rates.canary.n, rates.canary.bad, rates.stable.n, rates.stable.bad


def test_what_was_before_the_trial_is_no_evidence():
    judged = Judged(answer("a", 900, own(5_000, 400), theirs(3_000, 2_900)))
    assert judged.counted == (0, 0, 0, 0)
    judged.look(answer("a", 901, own(5_100, 401), theirs(3_010, 2_902)))
    assert judged.counted == (10, 2, 100, 1)


def test_each_answer_counts_once_however_often_and_late_it_comes():
    judged = Judged(answer("a", 900))
    first, second = answer("a", 901, own(100), theirs(10, 2)), answer("a", 902, own(200), theirs(20, 2))
    for one in (first, second, second, first):
        judged.look(one)
    assert judged.counted == (20, 2, 200, 0)


def test_a_bad_moment_is_one_event_however_soon_one_looks_again():
    def after(*seconds: float) -> Verdict:
        judged, asked = Judged(answer("a", 900)), 0
        for number, wait in enumerate(seconds):
            asked += 20
            judged.look(answer("a", 901 + number, own(asked), theirs(asked, asked)), CANARY_POD, after=wait)
        return judged.of("errorRate").verdict

    assert after(1.0, 0.05, 0.1, 0.2) is Verdict.NOT_ENOUGH_EVIDENCE
    assert after(1.0, 1.0, 1.0, 1.0) is Verdict.FAIL


def test_what_was_passed_over_counts_at_the_next_look():
    judged = Judged(answer("a", 900))
    judged.look(answer("a", 900.1, own(10, 1), theirs(10)), after=0.1)
    assert judged.counted == (0, 0, 0, 0)
    judged.look(answer("a", 901.1, own(90, 1), theirs(20)))
    assert judged.counted == (20, 0, 90, 1)


def test_answers_that_are_lost_lose_nothing():
    judged = Judged(answer("a", 900))
    judged.look(PodAnswer("a", OLD, None)).look(PodAnswer("a", OLD, None))
    assert judged.look(answer("a", 903, own(300, 3), theirs(30))).counted == (30, 0, 300, 3)


def test_a_server_that_starts_again_counts_from_zero_and_its_old_answers_no_more():
    judged = Judged(answer("a", 900, own(5_000)))
    before = answer("a", 901, own(5_100), theirs(10))
    again = answer("a", 1, own(7), theirs(3, 1), incarnation="two")
    assert judged.look(before).look(again).counted == (13, 1, 107, 0)
    late = answer("a", 902, own(5_200), theirs(20))
    assert judged.look(late).counted == (13, 1, 107, 0)
    assert judged.look(answer("a", 2, own(8), theirs(3, 1), incarnation="two")).counted == (13, 1, 108, 0)


def test_a_counter_that_goes_backwards_counts_nothing():
    judged = Judged(answer("a", 900, own(5_000), theirs(50)))
    assert judged.look(answer("a", 901, own(5_100), theirs(10))).counted == (0, 0, 0, 0)
    assert judged.look(answer("a", 902, own(5_200), theirs(30, 1))).counted == (20, 1, 100, 0)


def test_a_pod_that_began_during_the_trial_counts_whole_and_an_older_one_that_was_silent_does_not():
    judged = Judged(answer("a", 900)).look(answer("a", 910), after=10)
    judged.look(answer("a", 911), answer("new", 3, own(30), theirs(3)), answer("old", 500, own(9_000)))
    assert judged.counted == (3, 0, 30, 0)


def test_another_trial_begins_with_no_evidence():
    judged = Judged(answer("a", 900)).look(answer("a", 901, own(100), theirs(10, 9)))
    judged.look(CANARY_POD, answer("a", 902, own(150), theirs(15, 13)), trial="another")
    assert judged.counted == (0, 0, 0, 0)
    assert judged.look(answer("a", 903, own(160), theirs(16, 13)), trial="another").counted == (1, 0, 10, 0)


def test_decisions_of_one_request_fail_together_and_count_as_one():
    judged = Judged(answer("a", 900))
    batches = {**theirs(4), "predictions": 192, "errors": {"canary-error": 64}}
    judged.look(answer("a", 901, {**own(10), "predictions": 640}, batches))
    assert judged.counted == (4, 1, 10, 0)


def test_what_is_late_or_missing_is_a_fallback_and_no_error():
    judged = Judged(answer("a", 900))
    silent = {"canary-timeout": 5, "canary-unreachable": 4, "canary-fallback": 1}
    judged.look(answer("a", 901, own(100), theirs(20, errors=silent)))
    assert judged.counted[:2] == (20, 1)
    assert judged.evidence.rates["fallbackRate"].canary.bad == 10
    for times in (2, 3):
        more = {reason: times * count for reason, count in silent.items()}
        judged.look(answer("a", 900 + times, own(times * 100), theirs(times * 20, errors=more)))
    assert judged.of("fallbackRate").verdict is Verdict.FAIL


def test_copies_of_requests_are_evidence_as_well():
    judged = Judged(answer("a", 900))
    for times in (1, 2, 3):
        copies = tally("shadow", f"policy of {NEW}", times * 30, times * 20)
        judged.look(answer("a", 900 + times, own(times * 300), copies))
        assert judged.counted == (times * 30, times * 20, times * 300, 0)
    assert judged.of("errorRate").verdict is Verdict.FAIL


def test_nan_and_forbidden_actions_are_seen_wherever_they_are_noticed():
    judged = Judged(answer("a", 900))
    noticed = answer("canary", 2, theirs(10, nanAnswers=1, errors={"nan": 1}), arm=NEW)
    assert judged.look(noticed, answer("a", 901, own(90), theirs(10))).of("nan").verdict is Verdict.FAIL
    let_through = theirs(20, maskViolations=1, errors={"canary-mask-violation": 1})
    judged.look(answer("a", 902, own(180), let_through))
    assert judged.of("maskViolations").canary == 1


def test_what_the_canary_answers_to_other_pods_is_not_counted_there_again():
    judged = Judged(answer("a", 900))
    judged.look(answer("canary", 2, theirs(10, 5), arm=NEW), answer("a", 901, own(90), theirs(10, 5)))
    assert judged.counted == (10, 5, 90, 0)
    direct = tally("stable", f"policy of {NEW}", 7, 1)
    judged.look(answer("canary", 3, theirs(10, 5), direct, arm=NEW))
    assert judged.counted == (17, 6, 90, 0)


def test_an_arm_that_can_not_be_asked_is_a_source_that_is_down_unless_it_failed_already():
    judged = Judged(answer("a", 900)).look(CANARY_POD, answer("a", 901, own(900), theirs(100)))
    nobody = (PodAnswer("a", OLD, None), PodAnswer("canary", NEW, None))
    assert judged.look(*nobody, after=5).of("errorRate").verdict is not Verdict.SOURCE_DOWN
    judged.look(*nobody, after=6)
    assert set(verdicts(judged.decisions).values()) - {"Pass"} == {"SourceDown"}
    assert judged.of("restarts").verdict is Verdict.PASS
    for second in (0, 1, 2):
        bad = theirs(200 + 100 * second, 90 * (second + 1))
        judged.look(answer("a", 913 + second, own(1_000 * (second + 1)), bad), PodAnswer("canary", NEW, None))
    assert judged.of("errorRate").verdict is Verdict.FAIL


def test_answers_that_are_not_new_leave_an_arm_silent():
    judged = Judged(answer("a", 900))
    same = answer("a", 901, own(900), theirs(100))
    judged.look(same).look(same, after=30)
    assert judged.of("errorRate").verdict is Verdict.SOURCE_DOWN


def test_a_crash_fails_and_is_not_forgotten_with_its_pod():
    judged = Judged(answer("a", 900)).look(answer("a", 901, own(90), theirs(10)), restarts=1)
    assert judged.look(answer("a", 902, own(90), theirs(10)), restarts=0).of("restarts").canary == 1


def test_a_moment_that_is_slow_for_both_arms_is_compared_with_itself():
    """Though the canary's answer be lost just then, and all its traffic come in the bad weather."""

    def latency(requests: int, slow: int) -> dict[str, Any]:
        counts = [0] * BUCKETS
        counts[10], counts[21] = requests - slow, slow
        return {"latency": {"counts": counts}}

    judged = Judged(answer("a", 900))
    for second in range(1, 121):
        late, slow = max(0, second - 100), 25 * max(0, second // 10 - 10)
        stable = answer("a", 900 + second, own(50 * second, **latency(50 * second, slow)))
        canary = answer("canary", 1 + second, theirs(50 * late, **latency(50 * late, slow)), arm=NEW)
        judged.look(stable, PodAnswer("canary", NEW, None) if second % 10 == 0 else canary)
    judged.look(stable, canary)
    assert judged.of("latency").canary_n == 1_000
    assert judged.evidence.latency is not None
    assert judged.evidence.latency.ratio.canary.bad == judged.evidence.latency.ratio.stable.bad == 50
    assert judged.of("latency").evidence < 1


def test_arms_that_act_in_different_spaces_are_not_compared():
    judged = Judged(answer("a", 900), actionDrift={"enabled": True})
    one = own(100, actions={"number": 100, "counts": [50, 50]})
    judged.look(answer("a", 901, one, theirs(10, actions={"number": 10, "counts": [1, 2, 7]})))
    judged.look(answer("a", 902, one, theirs(10, actions={"number": 10, "mean": [0.5], "m2": [1.0]})))
    assert judged.of("actionDrift").verdict is Verdict.NOT_ENOUGH_EVIDENCE


def test_continuous_actions_that_move_are_seen_by_their_moments():
    rng = np.random.default_rng(1)
    judged = Judged(answer("a", 900), actionDrift={"enabled": True})
    arms: dict[str, list[Any]] = {"canary": [np.zeros((0, 2))], "stable": [np.zeros((0, 2))]}

    def moments(arm: str, shift: float) -> dict[str, Any]:
        arms[arm].append(rng.normal([0, shift], 1, (20, 2)))
        seen = np.concatenate(arms[arm])
        mean = seen.mean(axis=0)
        return {"number": len(seen), "mean": mean.tolist(), "m2": ((seen - mean) ** 2).sum(axis=0).tolist()}

    for second in range(1, 60):
        canary = theirs(20 * second, actions=moments("canary", 1.5))
        judged.look(answer("a", 900 + second, own(20 * second, actions=moments("stable", 0.0)), canary))
    found = judged.of("actionDrift")
    assert found.verdict is Verdict.FAIL
    assert found.canary == pytest.approx(1.5, abs=0.15)


def test_drift_without_a_count_of_episodes_is_not_judged():
    judged = Judged(answer("a", 900), actionDrift={"enabled": True})
    acts = own(100, actions={"number": 100, "counts": [50, 50]})
    other = theirs(90, actions={"number": 90, "counts": [90, 0]})
    judged.look(answer("a", 901, acts, other, sessions=3))
    assert judged.of("actionDrift").verdict is Verdict.NOT_ENOUGH_EVIDENCE


TRAINED = {"enabled": True, "maxDistanceFromTraining": 0.2}
EVALUATED = {
    "episodes": 40, "decisions": 4_000, "deterministic": True, "counts": [2_000, 1_200, 800],
    "error": [0.005, 0.005, 0.005],
}  # fmt: skip


def judged_from_training(
    actions: Sequence[float], evaluated: dict[str, Any] | None, seconds: int = 120, greedy: float = 1.0
) -> Judged:
    """A canary that takes its three actions so often, 100 a second, some of them as the most likely ones."""
    rng = np.random.default_rng(5)
    judged, counts, chosen = Judged(answer("a", 900), actionDrift=TRAINED), np.zeros(3, int), 0
    for second in range(1, seconds):
        counts += rng.multinomial(100, actions)
        chosen += int(rng.binomial(100, greedy))
        number = int(counts.sum())
        acts = {"number": number, "deterministic": chosen, "counts": counts.tolist()}
        # Stable does what the canary does: what fails is the other half of the guard.
        own_acts, their_acts = own(number, actions=acts), theirs(number, actions=acts)
        canary = answer("canary", 1 + second, arm=NEW, evaluated=evaluated)
        judged.look(canary, answer("a", 900 + second, own_acts, their_acts))
    return judged


def test_a_canary_that_acts_as_it_was_trained_passes():
    found = judged_from_training([0.5, 0.3, 0.2], EVALUATED).of("actionDriftTraining")
    assert (found.verdict, found.canary_n, found.stable_n) == (Verdict.PASS, 11_900, 0)
    assert "to match training" in found.sentence


def test_a_canary_that_acts_otherwise_than_it_was_trained_fails_though_stable_does_the_same():
    judged = judged_from_training([0.02, 0.03, 0.95], EVALUATED)
    found = judged.of("actionDriftTraining")
    assert found.verdict is Verdict.FAIL
    assert found.canary == pytest.approx(0.75, abs=0.02)
    assert found.needed == pytest.approx(2 / judged.court.alphas["actionDriftTraining"])
    assert judged.of("actionDrift").verdict is Verdict.PASS


def test_clients_that_name_no_episodes_play_such_as_were_evaluated():
    """A hundred decisions depend on each other: of 11,900 no more than 119 count."""
    found = judged_from_training([0.25, 0.25, 0.5], EVALUATED).of("actionDriftTraining")
    assert found.verdict is not Verdict.FAIL
    short = {**EVALUATED, "episodes": 4_000}
    assert judged_from_training([0.2, 0.2, 0.6], short).of("actionDriftTraining").verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("evaluated", "greedy", "why"),
    [
        (None, 1.0, "without figures of an evaluation"),
        ({**EVALUATED, "episodes": 19}, 1.0, "19 of the 20 episodes"),
        (EVALUATED, 0.0, "not the most likely ones"),
        (EVALUATED, 0.5, "not the most likely ones"),
        ({**EVALUATED, "deterministic": False}, 1.0, "not sampled"),
    ],
)
def test_without_an_evaluation_that_can_be_compared_nobody_waits(
    evaluated: dict[str, Any] | None, greedy: float, why: str
):
    found = judged_from_training([0.02, 0.03, 0.95], evaluated, 20, greedy).of("actionDriftTraining")
    assert (found.verdict, found.moot) == (Verdict.NOT_ENOUGH_EVIDENCE, True)
    assert why in found.sentence


def test_an_evaluation_that_is_not_known_yet_is_waited_for():
    court = court_of(spec_with(guards={"actionDrift": TRAINED}))
    _, decisions = judge(court, Evidence(), "t", NEW, OLD, [answer("a", 900)], 0, START)
    found = next(one for one in decisions if one.guard == "actionDriftTraining")
    assert (found.verdict, found.moot) == (Verdict.NOT_ENOUGH_EVIDENCE, False)


def test_a_server_that_does_not_say_how_actions_were_chosen_is_not_compared():
    canary = answer("canary", 1.0, arm=NEW, evaluated=EVALUATED)
    judged = Judged(actionDrift=TRAINED).look(canary, answer("a", 900))
    judged.look(canary, answer("a", 901, own(9), theirs(9, actions={"number": 9, "counts": [9, 0, 0]})))
    assert judged.of("actionDriftTraining").moot


@pytest.mark.parametrize(("mean", "verdict"), [(0.3, Verdict.PASS), (3.0, Verdict.FAIL)])
def test_continuous_actions_are_compared_with_those_of_training(mean: float, verdict: Verdict):
    rng = np.random.default_rng(6)
    evaluated = {
        "episodes": 40, "decisions": 400, "deterministic": True, "mean": [0.0, 0.3], "deviation": [1.0, 1.0],
        "error": [0.01, 0.01],
    }  # fmt: skip
    judged, seen = Judged(answer("a", 900), actionDrift=TRAINED), np.zeros((0, 2))
    for second in range(1, 60):
        seen = np.concatenate([seen, rng.normal([0.0, mean], 1, (20, 2))])
        moments = {"mean": seen.mean(axis=0).tolist(), "m2": (len(seen) * seen.var(axis=0)).tolist()}
        acts = {"number": len(seen), "deterministic": len(seen), **moments}
        canary = answer("canary", 1 + second, arm=NEW, evaluated=evaluated)
        judged.look(canary, answer("a", 900 + second, theirs(len(seen), actions=acts)))
    found = judged.of("actionDriftTraining")
    assert (found.verdict, found.canary_n, found.stable_n) == (verdict, 59 * 20, 0)


def test_actions_are_compared_in_the_bins_that_they_are_counted_in():
    many = {**EVALUATED, "counts": [10] * 100, "error": [0.001] * 100}
    canary = answer("canary", 1.0, arm=NEW, evaluated=many)
    judged = Judged(actionDrift=TRAINED).look(canary, answer("a", 900))
    acts = {"number": 100, "deterministic": 100, "counts": [1] * 100}
    judged.look(canary, answer("a", 901, theirs(100, actions=acts)))
    reference = judged.evidence.reference
    assert reference is not None
    assert len(reference.shares) == len(reference.error) == len(judged.evidence.trained.canary) == 25
    assert sum(reference.error) == pytest.approx(0.1)
    assert judged.evidence.trained.distance == pytest.approx(0)
    assert Evidence.model_validate_json(judged.evidence.to_annotation()) == judged.evidence


def episodes(arm: str, policy: str, start: float, age: float, n: int, began: int = 40) -> dict[str, Any]:
    cohort = {"start": start, "age": age, "started": began, "n": n, "mean": 9.0, "m2": 4.0}
    return {"arm": arm, "digest": f"policy of {policy}", "started": began, "cohorts": [cohort]}


@pytest.mark.parametrize("clock", [0.0, 1e9])
def test_a_cohort_is_read_once_when_it_is_old_enough_whatever_its_clock_says(clock: float):
    judged = Judged(answer("a", 900), episodeReturn={"enabled": True, "horizon": "2m"})
    for second, n in ((100, 10), (129, 20), (130, 30), (131, 40)):
        both = [
            episodes("canary", NEW, clock + 60, second, n // 10),
            episodes("stable", OLD, clock + 60, second, n),
        ]
        judged.look(answer("a", 900 + second, episodes=both), after=second - judged.second + 1)
    contrast = judged.evidence.returns.contrast
    assert (contrast.canary.all.n, contrast.stable.all.n) == (3, 30)


def test_episodes_that_began_before_the_trial_are_not_of_it():
    judged = Judged(answer("a", 900), episodeReturn={"enabled": True, "horizon": "1m"})
    before = [episodes(arm, policy, 60, 500, 5) for arm, policy in (("canary", NEW), ("stable", OLD))]
    judged.look(answer("a", 1_200, episodes=before), after=300)
    assert judged.evidence.returns.canary_began == 0


@pytest.mark.parametrize(
    ("baseline", "found", "estimate"), [(12.0, Verdict.FAIL, -3.0), (9.0, Verdict.PASS, 0.0)]
)
def test_a_baseline_is_compared_with_the_canarys_episodes_alone(
    baseline: float, found: Verdict, estimate: float
):
    judged = Judged(answer("a", 900), episodeReturn={"enabled": True, "horizon": "1m", "baseline": baseline})
    alone = [episodes("canary", NEW, 60, 100, 60, began=60)]
    judged.look(answer("a", 1_010, episodes=alone), after=110)
    decision = judged.of("episodeReturnBaseline")
    assert (decision.verdict, decision.canary, decision.stable) == (found, 9.0, baseline)
    assert (decision.canary_n, decision.estimate) == (60, estimate)
    assert judged.of("episodeReturn").verdict is Verdict.NOT_ENOUGH_EVIDENCE


def test_a_baseline_that_changes_starts_its_test_alone_anew():
    judged = Judged(answer("a", 900), episodeReturn={"enabled": True, "horizon": "1m", "baseline": 12})
    for start, baseline in ((60, 12.0), (70, 6.0)):
        returns = {"enabled": True, "horizon": "1m", "baseline": baseline}
        judged.court = court_of(spec_with(guards={"episodeReturn": returns}))
        both = [episodes(*arm, start, 100, 60, began=60) for arm in (("canary", NEW), ("stable", OLD))]
        judged.look(answer("a", 950 + start, episodes=both), after=110)
    decision = judged.of("episodeReturnBaseline")
    assert (decision.canary_n, decision.stable, decision.verdict) == (60, 6.0, Verdict.PASS)
    assert judged.of("episodeReturn").canary_n == 120


def test_evidence_comes_back_from_the_ledger_as_it_was():
    guards = {**EVERYTHING, "episodeReturn": {"enabled": True, "horizon": "20s"}}
    world = World(episode=5, skew=60)
    simulated = Simulation(spec_with(guards=guards), world, Behaviour(), weight=20, seed=4).run(150)
    again = Evidence.model_validate_json(simulated.evidence.to_annotation())
    assert again == simulated.evidence
    assert again.returns.contrast.canary.all.n > 0


def actions_of(outputs: int, rng: np.random.Generator, times: int) -> dict[str, Any]:
    number = times * 10**7
    return {
        "number": number,
        "deterministic": number,
        "counts": (times * rng.integers(10**6, 10**7, outputs)).tolist(),
    }


def components_of(width: int, rng: np.random.Generator, times: int) -> dict[str, Any]:
    number, mean, m2 = times * 10**7, rng.random(width).tolist(), (times * 1e6 * rng.random(width)).tolist()
    return {"number": number, "deterministic": number, "mean": mean, "m2": m2}


def evaluated_as(actions: dict[str, Any]) -> dict[str, Any]:
    names = {"counts": "counts"} if "counts" in actions else {"mean": "mean", "deviation": "m2"}
    values = {name: actions[of] for name, of in names.items()}
    error = [0.0123456] * max(map(len, values.values()))
    return {"episodes": 20, "decisions": 10**7, "deterministic": True, "error": error, **values}


@pytest.mark.parametrize("actions", [actions_of, components_of])
def test_evidence_of_many_pods_fits_into_an_annotation(actions: Any):
    rng = np.random.default_rng(0)

    def pods(uptime: float, times: int) -> Sequence[PodAnswer]:
        # What goes backwards counts nothing, and would take no room.
        slow = np.random.default_rng(1).integers(10**5, 10**6, BUCKETS)
        counts = {"latency": {"counts": (times * slow).tolist()}}
        return [
            answer(
                f"{arm}-2c1f0f4e-8d6f-4f7e-9d0a-{number:012}",
                uptime + rng.random(),
                own(times * 10**6, 999, actions=actions(300, np.random.default_rng(number), times), **counts),
                theirs(
                    times * 10**6, 999, actions=actions(300, np.random.default_rng(number), times), **counts
                ),
                arm=arm,
                evaluated=evaluated_as(actions(300, np.random.default_rng(number), 1)),
                incarnation=f"{number:012x}",
            )
            for number in range(2 * PODS_KEPT)
            for arm in (OLD, NEW)
        ]

    judged = Judged(**{**EVERYTHING, "actionDrift": TRAINED})
    for look in range(1, 4):
        judged.look(*pods(900 + 2 * look, look))
    assert judged.evidence.as_trained > 10**8
    assert (judged.evidence.drift.canary or judged.evidence.shift.components) != ()
    assert len(judged.evidence.pods) == 2 * PODS_KEPT
    assert len(judged.evidence.to_annotation().encode()) < 64 * 1024


def test_of_many_pods_those_that_make_room_are_not_counted_again_when_they_come_back():
    judged = Judged()
    first = [answer(f"first-{n}", 1.5, own(100)) for n in range(PODS_KEPT)]
    judged.look(*first, after=60)
    assert judged.counted[2] == 100 * PODS_KEPT
    judged.look(*(answer(f"second-{n}", 1.5, own(10)) for n in range(PODS_KEPT)), after=60)
    judged.look(*(answer(f"first-{n}", 61.5, own(100)) for n in range(PODS_KEPT)), after=1)
    assert judged.counted[2] == 110 * PODS_KEPT


def test_a_spec_whose_bound_changes_starts_that_test_alone_anew():
    judged = Judged(answer("a", 900)).look(answer("a", 901, own(100), theirs(10, 2)))
    judged.court = court_of(spec_with(guards={"errorRate": {"maxRatio": 3}}))
    judged.look(answer("a", 902, own(200), theirs(30, 5)))
    assert judged.counted == (20, 3, 100, 0)
    assert judged.evidence.rates["fallbackRate"].canary.n == 30


def test_before_the_canary_has_named_its_policy_nothing_is_counted():
    court = court_of(spec_with())
    evidence = Evidence()
    for uptime in (900.0, 930.0):
        now = START + timedelta(seconds=uptime)
        pods = [answer("a", uptime, own(int(uptime)), theirs(0))]
        evidence, decisions = judge(court, evidence, "t", NEW, OLD, pods, 0, now)
    assert not evidence.pods
    assert set(verdicts(decisions).values()) == {"NotEnoughEvidence"}
