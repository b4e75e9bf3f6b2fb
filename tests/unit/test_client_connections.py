"""Which connection a request of either client takes, and that callers share them."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from clients import PATIENT, MakeClient, until
from scriptedserver import GOOD, ScriptedServer, Step, decided, response

from ratchet.client import Action, AsyncClient, Client, Retries, base


def test_a_connection_is_kept_for_the_next_request(make_client: MakeClient):
    with ScriptedServer() as server:
        client = make_client(server.url)
        for _ in range(5):
            client.act([0])
        assert server.connections == 1


def test_an_idle_connection_that_the_server_closed_costs_nothing(make_client: MakeClient):
    """Not even a retry: it says nothing of the server."""
    with ScriptedServer() as server:
        client = make_client(server.url, retries=Retries(attempts=1))
        client.act([0])
        server.hang_up()

        assert client.act([0]).fallback is None
        assert client.counts["retries"] == 0
        assert server.connections == 2


@pytest.mark.parametrize("header", ["connection: close", "Connection: Close"])
def test_a_connection_that_the_server_gives_up_is_not_used_again(make_client: MakeClient, header: str):
    bye = Step(lambda body: response(200, decided(body), header), close=True)
    with ScriptedServer(bye, bye) as server:
        client = make_client(server.url)
        client.act([0])
        client.act([0])
        assert [request.connection for request in server.requests] == [0, 1]


def test_an_episode_returns_to_its_connection():
    """So one server sees the whole of it, through any balancer of connections."""
    with ScriptedServer() as server, Client(server.url, strict=True, timeout=PATIENT) as client:
        two_connections(server, client)
        for name in "abbabaab":
            client.act([0], episode=name)

    used = {name: {r.connection for r in server.requests if r.body["episode"] == name} for name in "ab"}
    assert [len(connections) for connections in used.values()] == [1, 1]
    assert used["a"] != used["b"]


def two_connections(server: ScriptedServer, client: Client) -> dict[str, int]:
    """Uses two connections at once, for the episodes a and b. Which of them has which."""
    gate = threading.Event()
    server.script = [Step(GOOD.answer, gate=gate), Step(GOOD.answer, gate=gate)]
    with ThreadPoolExecutor(2) as threads:
        first = [threads.submit(client.act, [0], episode=name) for name in "ab"]
        until(lambda: len(server.requests) == 2)
        gate.set()
        for one in first:
            one.result()
    return {request.body["episode"]: request.connection for request in server.requests}


def test_a_batch_returns_to_the_connection_of_its_episodes():
    with ScriptedServer() as server, Client(server.url, strict=True, timeout=PATIENT) as client:
        of = two_connections(server, client)
        client.act_batch([[0], [0]], episodes=["new", "a"])
        client.act([0], episode="b")
        client.act([0], episode="new")
        client.act_batch([[0], [0]], episodes=["newer", "b"])
        client.act([0], episode="new")
        client.act_batch([[0]], episodes=["newer"])
    found = [request.connection for request in server.requests[2:]]
    assert found == [of[name] for name in ("a", "b", "a", "b", "a", "b")]


def test_of_many_episodes_only_the_one_used_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "PINS", 3)
    with ScriptedServer() as server, Client(server.url, strict=True, timeout=PATIENT) as client:
        of = two_connections(server, client)
        for name in "cde":
            # A new episode takes the connection that was used last, which is not the one of a.
            for each in ("b", name, "a"):
                client.act([0], episode=each)
        used = {request.connection for request in server.requests if request.body["episode"] == "a"}
    assert used == {of["a"]}


def test_threads_share_a_client():
    with (
        ScriptedServer() as server,
        Client(server.url, strict=True, timeout=PATIENT) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        actions = list(threads.map(lambda i: client.act([i], episode=f"e{i % 3}"), range(200)))

    assert {action.id for action in actions} == {request.body["id"] for request in server.requests}
    assert len({action.id for action in actions}) == 200
    assert server.connections <= 8


def test_many_callers_wait_for_a_connection():
    async def ask(url: str) -> list[Action]:
        async with AsyncClient(url, strict=True, timeout=PATIENT, connections=4) as client:
            return await asyncio.gather(*(client.act([i]) for i in range(100)))

    with ScriptedServer() as server:
        assert len(asyncio.run(ask(server.url))) == 100
        assert server.connections <= 4


def test_a_caller_that_goes_away_leaves_no_answer_to_the_next():
    held = Step(GOOD.answer, gate=threading.Event())

    async def ask(server: ScriptedServer) -> Action:
        async with AsyncClient(server.url, strict=True, timeout=PATIENT) as client:
            gone = asyncio.create_task(client.act([0]))
            await asyncio.to_thread(until, lambda: len(server.requests) == 1)
            gone.cancel()
            held.gate.set()
            return await client.act([1])

    with ScriptedServer(held) as server:
        action = asyncio.run(ask(server))
        assert action.id == server.requests[1].body["id"]
