"""What both clients ask, and what they make of a good answer; over real sockets."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from clients import MakeClient
from scriptedserver import DIGEST, ScriptedServer

from ratchet.client import Action, Client


def test_an_action_comes_with_all_that_is_known_of_it(make_client: MakeClient):
    with ScriptedServer() as server:
        action = make_client(server.url).act([0.5, 1], episode="e")

    [request] = server.requests
    assert request.head.startswith("POST /v1/act HTTP/1.1\r\n")
    assert request.body == {"observation": [0.5, 1], "id": action.id, "episode": "e"}
    assert action == Action(1, -0.5, 2.5, DIGEST, "stable", None, request.body["id"])


def test_choices_reach_the_server_and_arrays_are_numbers(make_client: MakeClient):
    with ScriptedServer() as server:
        client = make_client(server.url)
        client.act(
            np.float32([0.5, 1]), mask=np.array([True, False]), deterministic=False, temperature=0.5, seed=7
        )
        client.act([np.float32(0.5), np.int64(1)])

    full, short = (request.body for request in server.requests)
    del full["id"], short["id"]
    assert full == {
        "observation": [0.5, 1.0], "mask": [True, False],
        "deterministic": False, "temperature": 0.5, "seed": 7,
    }  # fmt: skip
    assert short == {"observation": [0.5, 1]}


def test_a_batch_is_one_request_with_an_id_each(make_client: MakeClient):
    with ScriptedServer() as server:
        actions = make_client(server.url).act_batch(np.zeros((3, 2)), episodes=["a", "b", "c"])

    [request] = server.requests
    assert request.body["ids"] == [action.id for action in actions]
    assert len(set(request.body["ids"])) == 3
    assert request.body["episodes"] == ["a", "b", "c"]
    assert [(action.action, action.value) for action in actions] == [(0, None), (1, None), (2, None)]


def test_rewards_and_returns_are_sent(make_client: MakeClient):
    with ScriptedServer() as server:
        client = make_client(server.url)
        assert client.reward(1.5, id="a")
        assert client.reward(np.float32(200), episode="e", length=200)
        assert client.rewards([{"id": "a", "reward": 1}, {"id": "b", "reward": 2}])

    assert [request.body for request in server.requests] == [
        {"id": "a", "reward": 1.5},
        {"episode": "e", "return": 200.0, "length": 200},
        {"rewards": [{"id": "a", "reward": 1}, {"id": "b", "reward": 2}]},
    ]
    assert {request.head.split()[1] for request in server.requests} == {"/v1/reward"}


def test_a_reward_is_for_one_thing(make_client: MakeClient):
    with ScriptedServer() as server:
        client = make_client(server.url, fallback=0)
        for arguments in ({}, {"id": "a", "episode": "e"}):
            with pytest.raises(TypeError, match="for a decision"):
                client.reward(1.0, **arguments)


def test_the_token_and_the_path_before_are_sent(make_client: MakeClient):
    with ScriptedServer() as server:
        make_client(server.url + "/team/policy/", token="secret").act([0])

    head = server.requests[0].head
    assert head.startswith("POST /team/policy/v1/act HTTP/1.1\r\n")
    assert "\r\nAuthorization: Bearer secret\r\n" in head


@pytest.mark.parametrize(
    ("url", "settings", "words"),
    [
        ("localhost:8080", {}, "is no URL of a policy server"),
        ("ftp://host", {}, "is no URL of a policy server"),
        ("http://host/?a=b", {}, "is no URL of a policy server"),
        ("http://user:pass@host", {}, "take a token"),
        ("http://host", {"token": "a\r\nb"}, "no header can"),
        ("http://host", {"strict": False}, "say what to do when no answer comes"),
        ("http://host", {"fallback": 0, "strict": True}, "say what to do when no answer comes"),
    ],
)
def test_settings_that_cannot_work_are_refused(url: str, settings: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        Client(url, **({"strict": True} | settings))


def test_the_client_needs_nothing_but_python():
    """It is imported into programs that control things, whose packages are their own."""
    script = (
        "import sys; import ratchet.client; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    ours = {"__main__", "ratchet"}
    others = {name for name in found.stdout.split() if name not in sys.stdlib_module_names | ours}
    assert {name for name in others if not name.startswith(("_", "sitecustomize"))} == set()


def test_ids_are_json_and_short():
    with ScriptedServer() as server, Client(server.url, strict=True) as client:
        id_ = client.act([0]).id
    assert json.loads(json.dumps(id_)) == id_
    assert len(id_) < 64
