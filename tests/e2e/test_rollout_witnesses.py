"""What stands beside a rollout, on the real cluster: the chat that is told of it, and the Prometheus that a
guard asks. Neither may be needed: one that is gone delays nothing, and decides nothing.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arena import NAME, Arena
from beside import beside_the_cluster
from chat import SECRET, SILENT, Chat
from cluster import Json, Namespace, eventually, gateway
from redisserver import free_port
from rollouts.cartpoles import Stored

OTHERS = ("errorRate", "fallbackRate", "latency", "episodeReturn")


@pytest.fixture(scope="module")
def arena(s3: Any, s3_secret: Json) -> Iterator[Arena]:
    with Namespace.fresh("t-witnesses", s3_secret) as namespace:
        Chat(namespace).open()
        arena = Arena(namespace, s3)
        strategy = {
            "type": "Canary",
            "canary": {"steps": [{"weight": 50, "minDuration": "2s"}]},
            "bake": "2s",
            "progressDeadline": "120s",
        }
        arena.open("fair", strategy=strategy, webhook={"secretRef": {"name": SECRET}})
        yield arena


@pytest.fixture
def chat(arena: Arena) -> Chat:
    return Chat(arena.namespace)


def asking(address: str, policy: Stored, **bounds: float) -> Json:
    """Guards of which little but a query is left: how often a policy was asked, as servers say."""
    query = f'sum(ratchet_policy_requests_total{{digest="{policy.policy[:12]}"}})'
    one = {"name": "asked", "url": f"http://{address}", "query": query, **bounds}
    return {**{name: {"enabled": False} for name in OTHERS}, "prometheus": [one]}


def told(chat: Chat) -> Counter[str]:
    """How often each reason was posted."""
    return Counter(
        post["body"]["text"].removeprefix(f"{chat.namespace.name}/{NAME}: ").partition(".")[0]
        for post in chat.posts()
    )


def verdict(arena: Arena) -> str:
    """Of the query, on the present trial."""
    found = [one for one in arena.status().get("decisions", []) if one["guard"] == "asked"]
    return found[-1]["verdict"] if found else ""


def test_an_outage_of_prometheus_only_holds_and_a_verdict_is_told_once_by_whoever_reaches_it(
    arena: Arena, chat: Chat, tmp_path: Path
) -> None:
    eventually("the first policy was told of", lambda: told(chat) == {"TrialStarted": 1, "Promoted": 1})
    arena.mark()
    address = f"{gateway()}:{free_port()}"
    newer = arena.offer("good", guards=asking(address, arena.policy("good"), min=1))

    eventually("it has traffic", lambda: newer.policy in arena.report()["policies"])
    stage = arena.status()["trial"]["since"]
    arena.kill_operator()
    eventually("the stage is longer than it must be", lambda: arena.waits(stage, seconds=12))
    arena.awaits("SourceDown")
    assert verdict(arena) == "SourceDown"
    assert arena.phase() == ("Stage", 0)

    with beside_the_cluster(tmp_path, "1s", address):
        past = arena.ended(newer)

    assert past["outcome"] == "Promoted", past
    passed = [one for one in arena.records("Advance") if one["guard"] == "asked"]
    assert passed[-1]["canary"] >= 1
    arena.assert_nobody_noticed()
    eventually("the promotion was told", lambda: told(chat)["Promoted"] == 2)
    assert told(chat) == {"TrialStarted": 2, "Promoted": 2}
    for post in chat.posts():
        assert post["type"] == "application/json"
        assert set(post["body"]) == {"text", "attachments"}
        assert post["body"]["text"].startswith(f"{arena.namespace.name}/{NAME}: ")


def test_a_query_beyond_its_bound_rolls_back_though_the_chat_never_answers(
    arena: Arena, chat: Chat, tmp_path: Path
) -> None:
    arena.mark()
    chat.is_at(SILENT)
    before = told(chat)
    address = f"{gateway()}:{free_port()}"
    with beside_the_cluster(tmp_path, "1s", address):
        newer = arena.offer("good too", guards=asking(address, arena.policy("good too"), max=0))
        past = arena.ended(newer)

    assert past["outcome"] == "Failed", past
    failed = arena.records("RollBack")[-1]
    assert (failed["guard"], failed["verdict"], failed["bound"]) == ("asked", "Fail", 0)
    arena.assert_nobody_noticed(evicted=newer.policy)
    eventually("the chat heard of it", lambda: told(chat)["RollBackFailed"] == 1)
    assert told(chat) - before == {"TrialStarted": 1, "RollBackFailed": 1}
    (post,) = [one["body"] for one in chat.posts() if "RollBackFailed" in one["body"]["text"]]
    assert past["message"] in post["text"]
    assert [one["color"] for one in post["attachments"]] == ["danger"]
