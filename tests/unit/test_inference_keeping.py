"""An episode keeps the policy that it names, on whichever server it arrives and whatever the weight."""

import asyncio
from typing import Any

import pytest
import websocket
from policyserver import RECURRENT, Broken, Pair, Running, policy, send_to, serving, tallies, two_servers

from ratchet.client import AsyncClient, AsyncEpisode, Client, Episode

OBSERVATION = [0.1, -0.2, 0.3, 0.4]
A, B, C = "a" * 64, "b" * 64, "c" * 64


def act(running: Running, **body: Any) -> Any:
    status, answer = running.act(observation=OBSERVATION, **body)
    assert status == 200, answer
    return answer


def drop_sessions(running: Running, episode: str) -> None:
    """As if the episode had come to another replica of this server."""
    running.call(lambda: running.server.sessions.forget(episode))


def test_an_episode_that_names_the_canary_s_policy_goes_there_at_any_weight():
    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 0.0, digest=C)
        first = act(stable, episode="e", policy=C)
        unnamed = act(stable, episode="f")
        (seen,) = tallies(stable, "canary")
    assert (first["digest"], first["arm"], first["fallback"]) == (C, "canary", None)
    assert (unnamed["digest"], unnamed["arm"]) == (A, "stable")
    assert (seen["digest"], seen["requests"]) == (C, 1)


def test_an_episode_that_names_this_server_s_policy_stays_at_any_weight():
    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 1.0, digest=C)
        assert act(stable, episode="e", policy=A)["arm"] == "stable"
        # What it named once it need not name again here.
        assert act(stable, episode="e")["arm"] == "stable"
        assert act(stable, episode="f")["arm"] == "canary"


def test_a_policy_that_nobody_has_is_as_if_it_were_not_named():
    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 1.0, digest=C)
        assert act(stable, episode="e", policy="gone")["digest"] == C
        send_to(stable, canary.port, 0.0, 2, digest=C)
        assert act(stable, episode="f", policy="gone")["digest"] == A


def test_after_a_rollback_that_names_no_digest_nothing_is_sent_on():
    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 0.0)
        assert act(stable, episode="e", policy=C)["digest"] == A
        assert tallies(stable, "canary") == []


def test_a_policy_that_both_arms_have_says_nothing_of_the_arm():
    """An image is tried with the policy that serves already: its episodes stay with it all the same."""
    with serving(Pair(policy("a"))) as canary, serving(Pair(policy("a"))) as stable:
        send_to(stable, canary.port, 0.5, salt="s", digest=A)
        names = [f"e{i}" for i in range(20)]
        arms = [[act(stable, episode=name, policy=A)["arm"] for _ in range(2)] for name in names]
        send_to(stable, canary.port, 0.0, 2, salt="s", digest=A)
        assert act(stable, episode="other", policy=A)["arm"] == "stable"
    assert {tuple(pair) for pair in arms} == {("stable", "stable"), ("canary", "canary")}


def test_each_row_of_a_batch_goes_to_the_policy_that_it_names():
    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 0.0, digest=C)
        _, answer = stable.act(observations=[OBSERVATION] * 4, policies=[C, None, A, C], ids=list("wxyz"))
    assert answer["digests"] == [C, A, A, C]
    assert answer["arms"] == ["canary", "stable", "stable", "canary"]
    assert answer["ids"] == list("wxyz")


def test_an_episode_that_names_the_policy_before_a_swap_gets_it_on_a_server_that_never_saw_it():
    with serving(Pair(policy("b", seed=2), policy("a"))) as running:
        assert act(running, episode="e", policy=A)["digest"] == A
        assert act(running, episode="f", policy=B)["digest"] == B
        assert act(running, episode="g")["digest"] == B
        assert act(running, policy=A)["digest"] == A


def test_a_policy_that_was_taken_from_its_episodes_is_not_given_back():
    with serving(Pair(policy("b", seed=2), policy("a"))) as running:
        running.call(lambda: running.server.sessions.release(A))
        assert act(running, episode="e", policy=A)["digest"] == B


def test_a_memory_of_another_policy_is_not_used():
    """The name wins over what the server remembers, and the memory begins anew."""
    with serving(Pair(policy("b", RECURRENT, 2), policy("a", RECURRENT))) as running:
        for _ in range(2):
            act(running, episode="e", seed=1)
        named = [act(running, episode="e", policy=A, seed=1) for _ in range(2)]
        fresh = [act(running, episode="f", policy=A, seed=1) for _ in range(2)]
    assert [one["digest"] for one in named] == [A, A]
    assert [one["t"] for one in named] == [0, 1]
    assert [one["logProbability"] for one in named] == [one["logProbability"] for one in fresh]


def test_a_websocket_remembers_its_policy_by_itself():
    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 1.0, digest=C)
        socket = websocket.create_connection(f"ws://127.0.0.1:{stable.port}/v1/episode?episode=e", timeout=20)

        def ask() -> str:
            socket.send('{"observation": [0.1, -0.2, 0.3, 0.4]}')
            return str(socket.recv())

        assert C in ask()
        send_to(stable, canary.port, 0.0, 2, digest=C)
        drop_sessions(stable, "e")
        assert C in ask()
        send_to(stable, canary.port, 0.0, 3)
        assert A in ask()
        socket.close()


def test_the_open_inference_protocol_names_policies_too():
    rows = {"name": "observation", "datatype": "FP32", "shape": [2, 4], "data": OBSERVATION * 2}
    named = {"name": "policy", "datatype": "BYTES", "shape": [2], "data": [C, ""]}
    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 0.0, digest=C)
        _, answer = stable.request("POST", "/v2/models/policy/infer", {"inputs": [rows, named]})
    (digests,) = [one["data"] for one in answer["outputs"] if one["name"] == "digest"]
    assert digests == [C, A]


WRONG: list[dict[str, Any]] = [
    {"observation": OBSERVATION, "policy": 7},
    {"observation": OBSERVATION, "policy": ""},
    {"observation": OBSERVATION, "policy": "x" * 257},
    {"observation": OBSERVATION, "policies": [A]},
    {"observations": [OBSERVATION], "policies": A},
    {"observations": [OBSERVATION], "policies": [A, A]},
    {"observations": [OBSERVATION], "policies": [[A]]},
]


@pytest.mark.parametrize("body", WRONG, ids=str)
def test_a_name_that_is_none_is_refused(body: dict[str, Any]):
    with serving(Pair(policy())) as running:
        assert running.request("POST", "/v1/act", body)[0] == 400


def test_the_client_sends_back_which_policy_answered():
    with (
        two_servers() as (stable, canary),
        Client(f"http://127.0.0.1:{stable.port}", strict=True, timeout=5) as client,
    ):
        before = client.act(OBSERVATION, episode="old")
        send_to(stable, canary.port, 1.0, digest=C)
        drop_sessions(stable, "old")
        batch = client.act_batch([OBSERVATION] * 2, episodes=["old", "new"])
        send_to(stable, canary.port, 0.0, 2, digest=C)
        drop_sessions(stable, "new")
        after = [client.act(OBSERVATION, episode=name).digest for name in ("old", "new", "newest")]
    assert before.digest == A
    assert [action.digest for action in batch] == [A, C]
    assert after == [A, C, A]


def test_the_client_for_asyncio_does_the_same():
    async def ask(stable: Running, canary: Running) -> list[str]:
        async with AsyncClient(f"http://127.0.0.1:{stable.port}", strict=True, timeout=5) as client:
            first = await client.act(OBSERVATION, episode="e")
            many = await client.act_batch([OBSERVATION] * 2, episodes=["f", "g"])
            await asyncio.to_thread(send_to, stable, canary.port, 0.0, 2, digest=C)
            for name in "efg":
                await asyncio.to_thread(drop_sessions, stable, name)
            again = await client.act_batch([OBSERVATION] * 3, episodes=["f", "h", "g"])
            last = await client.act(OBSERVATION, episode="e")
            async with AsyncEpisode(client, "e") as episode:
                other = await episode.act(OBSERVATION)
        return [action.digest for action in (first, *many, *again, last, other)]

    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 1.0, digest=C)
        assert asyncio.run(ask(stable, canary)) == [C, C, C, C, A, C, C, A]


def test_an_episode_over_a_websocket_comes_back_to_its_policy_on_another_server():
    with two_servers() as (stable, canary), serving(Pair(policy("a"))) as other:
        send_to(stable, canary.port, 1.0, digest=C)
        send_to(other, canary.port, 0.0, digest=C)
        client = Client(f"http://127.0.0.1:{stable.port}", strict=True, timeout=5)
        with client, Episode(client, "e") as episode:
            assert episode.act(OBSERVATION).digest == C
            stable.run(stable.server.drain())
            client.endpoint.port = other.port
            assert episode.act(OBSERVATION).digest == C


def test_one_answer_of_the_stable_policy_in_place_of_a_late_canary_moves_no_episode():
    """A fallback says nothing of the next step: neither the first one of an episode, nor one in its midst."""
    with (
        serving(
            Pair(Broken(policy("c"), lambda decided: decided._replace(action=decided.action * 0 - 9)))
        ) as bad,
        serving(Pair(policy("c", seed=1))) as good,
        serving(Pair(policy("a"))) as stable,
        Client(f"http://127.0.0.1:{stable.port}", strict=True, timeout=5) as client,
    ):
        actions: list[Any] = []
        for generation, running in enumerate([bad, good, bad, good], 1):
            send_to(stable, running.port, 1.0, generation, salt="s", digest=C)
            drop_sessions(stable, "e")
            actions.append(client.act(OBSERVATION, episode="e"))
    assert [(action.digest, action.fallback) for action in actions] == [
        (A, "stable"), (C, None), (A, "stable"), (C, None),
    ]  # fmt: skip


def test_a_policy_that_is_gone_is_named_no_more():
    """So that an episode whose canary was taken away stays where it went then."""
    with (
        two_servers() as (stable, canary),
        Client(f"http://127.0.0.1:{stable.port}", strict=True, timeout=5) as client,
    ):
        send_to(stable, canary.port, 1.0, digest=C)
        assert client.act(OBSERVATION, episode="e").digest == C
        send_to(stable, canary.port, 0.0, 2)
        assert client.act(OBSERVATION, episode="e").digest == A
        send_to(stable, canary.port, 1.0, 3, salt="next", digest=C)
        drop_sessions(stable, "e")
        assert client.act(OBSERVATION, episode="e").digest == A
