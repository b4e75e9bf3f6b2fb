"""The players of the rollout tests see what is wrong."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from policyserver import Pair, serving
from ratchet_inference.decisions.rewards import Rewards, RewardSettings
from scriptedserver import GOOD, Body, ScriptedServer, Step, decided, response

HACK = Path(__file__).parents[2] / "hack"
sys.path.insert(0, str(HACK))

from rollouts import cartpoles  # noqa: E402


def answer(**changes: Any) -> Step:
    def make(body: Body) -> bytes:
        return response(200, decided(body, **changes))

    return Step(make)


def played(url: str, requests: int) -> dict[str, Any]:
    """The last report of one player who plays episodes of three steps."""
    process = subprocess.Popen(
        [sys.executable, HACK / "rollouts" / "players.py", "--url", url, "--rate=100", "--players=1",
         "--steps=3"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = (json.loads(line) for line in process.stdout)
    next(line for line in lines if line["requests"] >= requests)
    process.send_signal(signal.SIGTERM)
    *_, last = lines
    assert (process.wait(20), last["ended"]) == (0, True)
    return last


def test_an_episode_that_changes_its_policy_is_counted_and_a_fallback_is_not() -> None:
    moved = [answer(digest="a" * 64), answer(digest="b" * 64), answer(digest="b" * 64), GOOD]
    helped = [answer(digest="a" * 64), answer(digest="b" * 64, fallback="stable", arm="canary"), GOOD]

    with ScriptedServer(*moved, *helped) as server:
        report = played(server.url, 20)

    # In the second one the last answer is the scripted server's own again.
    assert report["changed"] == {"a" * 64: 2}
    assert "a" * 64 + " to " + "b" * 64 in report["changes"][0]
    assert report["fallbacks"] == {"canary>stable": 1}
    assert report["canary"]["answers"] == 1
    assert report["policies"]["b" * 64] | {"first": 0, "last": 0} == {
        "answers": 2, "first": 0, "last": 0, "episodes": 1, "meanReturn": 3.0,
    }  # fmt: skip


def test_what_is_no_valid_answer_is_counted_and_delays_nothing() -> None:
    refused = Step(response(400, {"error": {"code": "bad", "message": "no"}}))

    with ScriptedServer(answer(action=2), refused, answer(logProbability=None)) as server:
        report = played(server.url, 40)

    assert report["invalid"] == [f"2 under None by {'ab' * 32}"]
    assert report["errors"]["Refused"] == 1
    assert report["valid"] + report["failed"] + 1 == report["requests"]


def test_a_whole_game_with_a_real_server_has_nothing_to_complain_of() -> None:
    served = cartpoles.balancing().policy(seed=0)

    with serving(Pair(served), rewards=Rewards(None, RewardSettings(), time.time)) as server:
        report = played(f"http://127.0.0.1:{server.port}", 60)

    assert (report["failed"], report["invalid"], report["changed"], report["lostRewards"]) == (0, [], {}, 0)
    assert list(report["policies"]) == [served.digest]
    assert report["policies"][served.digest]["meanReturn"] == 3.0
