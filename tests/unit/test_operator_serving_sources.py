"""A job learns on while its policy serves: what `checkpoint` and `follow` make of its newer checkpoints."""

from typing import Any

import pytest
from ratchet_operator.kinds import Json, status_of, sub
from servingworld import POLICIES, ServingWorld, digest_of
from world import JOB_SPEC, NAMESPACE

STEPS = {policy: 100 * number for number, policy in enumerate(POLICIES, 1)}
FOLLOW = ["Automatic", "OnApproval", "Never"]


def stored(policy: str) -> Json:
    """A checkpoint as the job's status names it."""
    return {
        "name": policy,
        "uri": f"s3://bucket/{NAMESPACE}/job/uid-j/manifests/{policy}.json",
        "digest": digest_of(policy),
        "steps": STEPS[policy],
        "policyVersion": STEPS[policy],
        "time": "2026-01-01T00:00:00Z",
    }


class LearningWorld(ServingWorld):
    """Serves the checkpoints of a job, which has one."""

    def __init__(self, **of_job: Any) -> None:
        super().__init__()
        self.learn("good")
        self.follow(**of_job)

    def follow(self, **of_job: Any) -> None:
        self.edit(source={"type": "TrainingJob", "trainingJob": {"jobRef": {"name": "job"}, **of_job}})

    def learn(self, latest: str, best: str | None = None) -> None:
        """The job has written `latest`, and found `best` the best of all so far."""
        checkpoints = {"latest": stored(latest), "best": stored(best or latest)}
        job = {"kind": "RLTrainingJob", "metadata": {"name": "job"}, "spec": JOB_SPEC}
        self.put({**job, "status": {"checkpoints": checkpoints}})

    @property
    def tried(self) -> str | None:
        """The policy on trial."""
        digest = sub(status_of(self.deployment), "canary").get("digest")
        return next((one for one in POLICIES if digest_of(one) == digest), None)

    @property
    def trials(self) -> list[tuple[str, str]]:
        """Policies that were tried after the first one, and what became of them."""
        names = {digest_of(policy): policy for policy in POLICIES}
        past = status_of(self.deployment).get("history", [])
        return [(names[one["digest"]], one["outcome"]) for one in past][1:]

    @property
    def message(self) -> str:
        (told,) = (one for one in status_of(self.deployment)["conditions"] if one["type"] == "Progressing")
        return told["message"]


@pytest.mark.parametrize(("checkpoint", "newer"), [("Best", "best"), ("Latest", "better")])
def test_a_newer_checkpoint_of_those_that_are_followed_is_tried_by_itself(checkpoint: str, newer: str):
    world = LearningWorld(checkpoint=checkpoint)
    world.settle()
    assert world.serving == "good"

    world.learn(latest="better", best="best")
    world.settle()

    assert (world.serving, world.reason()) == (newer, "Serving")
    assert world.trials == [(newer, "Promoted")]
    assert world.failed == 0


def test_a_trial_is_not_disturbed_by_what_is_learned_meanwhile_and_the_newest_follows_it():
    world = LearningWorld(checkpoint="Latest")
    world.settle()
    world.learn("better")
    world.seconds(3)
    assert world.tried == "better"

    for newer in ("worse", "best"):
        world.learn(newer)
        world.seconds(2)
        assert world.tried == "better"
        assert "A newer checkpoint waits for its turn." in world.message
    world.settle()

    assert world.trials == [("better", "Promoted"), ("best", "Promoted")]
    assert (world.serving, world.failed) == ("best", 0)


def test_a_newer_checkpoint_takes_the_place_of_one_that_is_quarantined():
    world = LearningWorld(checkpoint="Latest")
    world.settle()
    world.learn("worse")
    world.settle()
    assert world.reason() == "Quarantined"

    world.learn("better")
    world.settle()

    assert world.trials == [("worse", "Failed"), ("better", "Promoted")]


def test_what_needs_approval_says_so_and_begins_with_promote_alone():
    world = LearningWorld(checkpoint="Latest", follow="OnApproval")
    world.settle()

    for newer in ("better", "best"):
        world.learn(newer)
        world.settle()
        assert (world.serving, world.reason(), world.trials) == ("good", "AwaitingApproval", [])
        assert "ratchet rollout promote" in world.message
    world.order("promote/1")
    world.second()

    assert world.tried == "best"
    world.settle()
    assert (world.serving, world.reason()) == ("best", "Serving")
    assert world.events.count("StagePassed") == 2, "it was tried like any other"


def test_one_approval_begins_one_trial_and_none_of_what_is_learned_later():
    world = LearningWorld(checkpoint="Latest", follow="OnApproval")
    world.settle()
    world.order("promote/1")  # of nothing
    world.settle()

    world.learn("better")
    world.settle()
    assert (world.reason(), world.trials) == ("AwaitingApproval", [])
    world.order("promote/2")
    world.seconds(3)
    world.learn("best")
    world.settle()

    assert (world.reason(), world.trials) == ("AwaitingApproval", [("better", "Promoted")])


def test_promote_during_a_trial_means_that_trial_and_approves_of_nothing_newer():
    world = LearningWorld(checkpoint="Latest", follow="OnApproval")
    world.settle()
    world.learn("better")
    world.order("promote/1")
    world.seconds(3)
    world.learn("best")
    world.second()

    world.order("promote/2")
    world.settle()

    assert (world.reason(), world.trials) == ("AwaitingApproval", [("better", "Promoted")])
    assert "StagePassed" not in world.events


def test_what_needs_approval_is_announced_also_after_one_that_failed():
    world = LearningWorld(checkpoint="Latest", follow="OnApproval")
    world.settle()
    world.learn("worse")
    world.settle()
    world.order("promote/1")
    world.settle()
    assert world.reason() == "Quarantined"

    world.learn("better")
    world.settle()
    assert (world.reason(), world.reason("Degraded")) == ("AwaitingApproval", "Quarantined")
    world.order("promote/2")
    world.settle()

    assert world.trials == [("worse", "Failed"), ("better", "Promoted")]


def test_what_needs_approval_is_announced_also_while_nothing_runs():
    world = LearningWorld(checkpoint="Latest", follow="OnApproval")
    world.edit(scaleToZeroAfter="10s")
    world.settle()
    world.is_busy = False
    world.seconds(30)
    assert world.reason() == "ScaledToZero"

    world.learn("better")
    world.settle()
    assert (world.reason("Available"), world.reason()) == ("ScaledToZero", "AwaitingApproval")
    world.is_busy = True
    world.order("promote/1")
    world.settle()

    assert (world.serving, world.failed) == ("better", 0)


def test_what_nobody_follows_is_neither_tried_nor_announced_until_the_spec_says_otherwise():
    world = LearningWorld(checkpoint="Latest", follow="Never")
    world.settle()

    world.learn("better")
    world.order("promote/1")
    world.settle()
    assert (world.serving, world.reason(), world.trials) == ("good", "Serving", [])
    world.follow(checkpoint="Latest", follow="Automatic")
    world.settle()

    assert world.trials == [("better", "Promoted")]


def test_a_trial_says_nothing_of_a_newer_checkpoint_that_nobody_follows():
    world = LearningWorld(checkpoint="Latest", follow="Never")
    world.settle()
    world.edit(server={"resources": {"requests": {"cpu": "2"}}})
    world.seconds(3)
    assert world.tried == "good"

    world.learn("better")
    world.seconds(2)

    assert world.tried == "good"
    assert "newer" not in world.message


@pytest.mark.parametrize("policy", ["good", "better"])
@pytest.mark.parametrize("follow", FOLLOW)
def test_a_step_is_that_of_the_best_or_of_the_latest_checkpoint_and_stays(policy: str, follow: str):
    world = LearningWorld(checkpoint="Step", step=STEPS[policy], follow=follow)
    world.learn(latest="better", best="good")
    world.settle()
    assert world.serving == policy

    world.learn("best")
    world.order("promote/1")
    world.settle()

    assert (world.serving, world.trials) == (policy, [])
    world.learn(latest="best", best="best")
    world.settle()
    assert (world.serving, world.trials, world.reason()) == (policy, [], "Serving")


def test_a_step_that_is_neither_the_best_nor_the_latest_is_not_found_and_the_other_way_is_said():
    world = LearningWorld(checkpoint="Step", step=STEPS["better"])
    world.learn(latest="best", best="good")
    world.settle()

    assert (world.serving, world.reason()) == (None, "WaitingForCheckpoint")
    for word in ("no checkpoint at step 200", "at 100 and 300", "source.type: Checkpoint"):
        assert word in world.message
