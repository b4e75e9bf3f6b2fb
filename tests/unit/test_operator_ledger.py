"""What is remembered of a job, though a newer release wrote it, or somebody damaged it."""

import json

import pytest
from ratchet_operator.ledger import LEDGER_ANNOTATION, Ledger, read_ledger

ENDED = {
    "conditions": [
        {
            "type": "Succeeded",
            "status": "True",
            "reason": "MaxStepsReached",
            "message": "1000 steps.",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
            "observedGeneration": 1,
        }
    ]
}


def config_map(text: str) -> dict:
    return {"metadata": {"annotations": {LEDGER_ANNOTATION: text}}}


def test_fields_of_a_newer_release_are_passed_over():
    failure = {"id": "1", "reason": "Error", "action": "Count", "time": "2026-01-01T00:00:00Z", "node": "n"}
    text = {"outcome": "Failed", "attempt": 3, "failures": [failure], "final": {"cost": 1}, "colour": "red"}

    ledger = read_ledger(config_map(json.dumps(text)), {})

    assert (ledger.outcome, ledger.attempt, ledger.failures[0].id) == ("Failed", 3, "1")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"attempt": "many"}'])
@pytest.mark.parametrize("more", [{}, {"cost": 1}], ids=["this release", "a newer release"])
def test_where_the_ledger_is_damaged_the_status_still_says_that_the_job_has_ended(text, more):
    ledger = read_ledger(config_map(text), {**ENDED, **more})

    assert (ledger.outcome, ledger.reason) == ("Succeeded", "MaxStepsReached")


def test_where_nothing_can_be_read_the_ledger_is_new():
    assert read_ledger(config_map("{"), {"conditions": "none"}) == Ledger()
