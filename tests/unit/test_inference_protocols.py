"""The other ways to ask: Open Inference, WebSocket, rewards, Prometheus, and the orders of an operator."""

import asyncio
import gc
import json
import socket
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websocket
from hypothesis import given, settings
from hypothesis import strategies as st
from policyserver import SPEC, Pair, Running, answers, policy, post, send_to, serving
from ratchet_inference.admin import PolicyRequest
from ratchet_inference.decisions.rewards import Rewards, RewardSettings
from ratchet_inference.residents import Residents
from test_inference_routing import http_answer, stand_in

from ratchet.api.v1alpha1.serverstats import ServerStats
from ratchet.policies import PolicySpec, SpaceSpec, parameter_shapes
from ratchet.policies.artifact import PolicyLineage, make, write_folder

OBSERVATION = [0.1, -0.2, 0.3, 0.4]
BOSS = {"authorization": "Bearer boss"}


@pytest.fixture(scope="module")
def running():
    with serving(Pair(policy()), max_body_bytes=200_000) as running:
        yield running


def tensor(name: str, data: Any, shape: list[int], datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def infer(running: Running, *inputs: dict[str, Any], **more: Any) -> tuple[int, Any]:
    return running.request("POST", "/v2/models/policy/infer", {"inputs": list(inputs), **more})


# Open Inference Protocol


def test_an_infer_request_is_answered_as_an_act_request(running: Running):
    rows = np.random.default_rng(0).normal(size=(3, 4)).round(3)
    _, act = running.act(observations=rows.tolist(), deterministic=True)
    for data in (rows.tolist(), rows.reshape(-1).tolist()):
        status, answer = infer(
            running, tensor("observation", data, [3, 4]), id="mine", parameters={"deterministic": True}
        )
        outputs = {output["name"]: output for output in answer["outputs"]}
        assert (status, answer["id"], answer["model_version"]) == (200, "mine", "a" * 64)
        assert outputs["action"] == {
            "name": "action",
            "datatype": "INT64",
            "shape": [3],
            "data": act["actions"],
        }
        assert outputs["log_probability"]["data"] == pytest.approx(act["logProbabilities"])


def test_masks_and_chosen_outputs_of_the_open_inference_protocol(running: Running):
    _, answer = infer(
        running,
        tensor("observation", OBSERVATION, [1, 4]),
        tensor("mask", [False, False, True], [1, 3], "BOOL"),
        outputs=[{"name": "action"}],
    )
    assert answer["outputs"] == [{"name": "action", "datatype": "INT64", "shape": [1], "data": [2]}]


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [tensor("observation", [1, 2], [1, 4])],
        [tensor("observation", [1, 2, 3], [1, 3])],
        [tensor("observation", OBSERVATION, [1, 4], "BYTES")],
        [tensor("observation", OBSERVATION, [4])],
        [tensor("other", OBSERVATION, [1, 4])],
        [tensor("observation", OBSERVATION, [1, 4]), tensor("mask", [0, 0, 0], [1, 3], "BOOL")],
        [{"name": "observation"}],
        [{**tensor("observation", OBSERVATION, [1, 4]), "datatype": []}],
        [tensor("observation", ["1.5", 2, 3, 4], [1, 4])],
        [tensor("observation", json.loads("[" * 900 + "]" * 900), [1, 4])],
        ["observation"],
    ],
    ids=str,
)
def test_a_wrong_tensor_is_refused_in_the_form_of_the_protocol(running: Running, inputs: list[Any]):
    status, answer = infer(running, *inputs)
    assert status == 400
    assert isinstance(answer["error"], str)


def test_models_health_and_metadata(running: Running):
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/policy/ready", "/v2"):
        assert running.request("GET", path)[0] == 200
    _, model = running.request("GET", f"/v2/models/policy/versions/{'a' * 64}")
    assert model["versions"] == ["a" * 64]
    assert model["inputs"][0] == {"name": "observation", "datatype": "FP32", "shape": [-1, 4]}
    assert running.request("GET", "/v2/models/other")[0] == 404
    assert running.request("GET", "/v2/models/policy/versions/b")[0] == 404
    assert running.request("POST", "/v2/models/other/infer", {"inputs": []})[0] == 404


# WebSocket


def open_episode(running: Running, query: str = "") -> websocket.WebSocket:
    return websocket.create_connection(f"ws://127.0.0.1:{running.port}/v1/episode{query}", timeout=20)


def test_an_episode_over_a_websocket(running: Running):
    connection = open_episode(running, "?episode=mine")
    found: list[Any] = []
    for _ in range(3):
        connection.send(json.dumps({"observation": OBSERVATION, "deterministic": True}))
        found.append(json.loads(connection.recv()))
    connection.send("{")
    refused = json.loads(connection.recv())
    connection.send(json.dumps({"observation": OBSERVATION}))
    after = json.loads(connection.recv())
    connection.ping("still there?")
    assert connection.recv_data_frame(control_frame=True)[1].data == b"still there?"
    connection.close()
    assert [answer["t"] for answer in found] == [0, 1, 2]
    assert {answer["episode"] for answer in found} == {"mine"}
    assert refused["error"]["code"] == "bad-json"
    assert after["t"] == 3
    again = open_episode(running, "?episode=mine")
    again.send(json.dumps({"observation": OBSERVATION}))
    assert json.loads(again.recv())["t"] == 0  # the end of the connection was the end of the episode
    again.close()


def test_messages_sent_together_are_answered_in_order(running: Running):
    connection = open_episode(running)
    for i in range(50):
        body = {"observation": OBSERVATION, "id": f"n{i}"} if i % 5 else {"observation": [i]}
        connection.send(json.dumps(body))
    found = [json.loads(connection.recv()) for _ in range(50)]
    connection.close()
    assert [answer.get("id") for answer in found] == [f"n{i}" if i % 5 else None for i in range(50)]


def test_fragments_and_binary_messages_are_put_together(running: Running):
    connection = open_episode(running)
    text = json.dumps({"observation": OBSERVATION})
    connection.send_frame(websocket.ABNF.create_frame(text[:10], websocket.ABNF.OPCODE_TEXT, 0))
    connection.ping()
    connection.send_frame(websocket.ABNF.create_frame(text[10:], websocket.ABNF.OPCODE_CONT, 1))
    assert "action" in json.loads(connection.recv())
    connection.send_binary(text.encode())
    assert "action" in json.loads(connection.recv())
    connection.close()


def test_a_step_that_comes_again_over_another_websocket_gets_the_same_action():
    def actions(running: Running) -> list[int]:
        connection = open_episode(running)
        found: list[int] = []
        for number in range(16):
            connection.send(json.dumps({"observation": OBSERVATION, "id": f"d{number}"}))
            found.append(json.loads(connection.recv())["action"])
        connection.close()
        return found

    with serving(Pair(policy())) as one, serving(Pair(policy())) as other:
        first, second = actions(one), actions(other)
    assert len(set(first)) > 1
    assert second == first


def closing_code(connection: websocket.WebSocket) -> int:
    while True:
        code, data = connection.recv_data(control_frame=True)
        if code == websocket.ABNF.OPCODE_CLOSE:
            return struct.unpack("!H", data[:2])[0]


def test_what_breaks_the_websocket_protocol_ends_it_with_a_code(running: Running):
    for frame, code in (
        (b"\x81\x02{}", 1002),  # not masked
        (b"\xf1\x80\0\0\0\0", 1002),  # reserved bits
        (b"\x80\x80\0\0\0\0", 1002),  # continues nothing
        (b"\x83\x80\0\0\0\0", 1002),  # unknown code
        (b"\x09\x80\0\0\0\0", 1002),  # a ping in pieces
        (b"\x81\xff" + (1 << 40).to_bytes(8) + b"\0\0\0\0", 1009),
    ):
        connection = open_episode(running)
        connection.sock.sendall(frame)
        assert closing_code(connection) == code
    assert running.act(observation=OBSERVATION)[0] == 200


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_no_frames_stop_the_server(running: Running, data: bytes):
    connection = open_episode(running)
    connection.sock.sendall(data)
    connection.sock.shutdown(socket.SHUT_WR)
    while connection.sock.recv(4096):
        pass
    connection.sock.close()
    assert running.act(observation=OBSERVATION)[0] == 200


def test_a_drain_says_goodbye_to_episodes():
    with serving(Pair(policy())) as running:
        connection = open_episode(running)
        running.run(running.server.drain())
        assert closing_code(connection) == 1001


def test_a_drain_sends_the_answers_that_are_due_before_goodbye():
    asked, may_answer = threading.Event(), threading.Event()
    answer = {"id": "i", "action": 1, "logProbability": -0.5, "digest": "c" * 64, "arm": "canary",
              "value": None, "fallback": None, "episode": None, "t": None}  # fmt: skip

    def late(_: bytes) -> bytes:
        asked.set()
        assert may_answer.wait(20)
        return http_answer(answer)

    with stand_in(late) as port, serving(Pair(policy()), canary_ms=20_000) as running:
        send_to(running, port, 1.0)
        connection = open_episode(running)
        connection.send(json.dumps({"observation": OBSERVATION}))
        assert asked.wait(20)
        draining = asyncio.run_coroutine_threadsafe(running.server.drain(), running.loop)
        running.call(lambda: None)
        may_answer.set()
        assert json.loads(connection.recv())["digest"] == "c" * 64
        assert closing_code(connection) == 1001
        draining.result(20)


def test_an_episode_whose_client_is_dead_ends_and_one_that_answers_pings_stays():
    with serving(Pair(policy()), idle_seconds=1.0) as running:
        dead, alive = open_episode(running), open_episode(running)
        pings = 0
        while pings < 4:
            code, data = alive.recv_data(control_frame=True)
            assert code == websocket.ABNF.OPCODE_PING
            alive.pong(data)
            pings += 1
        with suppress(ConnectionResetError):
            while dead.sock.recv(4096):
                pass
        alive.send(json.dumps({"observation": OBSERVATION}))
        while (found := alive.recv_data(control_frame=True))[0] == websocket.ABNF.OPCODE_PING:
            pass
        assert json.loads(found[1])["t"] == 0


def test_a_client_that_came_again_keeps_its_episode_when_the_old_connection_ends():
    with serving(Pair(policy())) as running:
        old, new = open_episode(running, "?episode=e"), open_episode(running, "?episode=e")
        for t, connection in enumerate((old, new)):
            connection.send(json.dumps({"observation": OBSERVATION}))
            assert json.loads(connection.recv())["t"] == t
        old.close()
        while running.stats()["connections"] > 2:  # the new one, and the one that asks
            pass
        new.send(json.dumps({"observation": OBSERVATION}))
        assert json.loads(new.recv())["t"] == 2


def test_an_upgrade_needs_both_headers_and_no_answer_before_it(running: Running):
    key = b"sec-websocket-version: 13\r\nsec-websocket-key: YWFhYWFhYWFhYWFhYWFhYQ==\r\n"
    episode = b"GET /v1/episode HTTP/1.1\r\nupgrade: websocket\r\n" + key
    for asked, statuses in (
        (episode + b"\r\n" + post("{"), [400, 400]),
        (
            post(json.dumps({"observation": OBSERVATION})) + episode + b"connection: Upgrade\r\n\r\n",
            [200, 400],
        ),
    ):
        with running.connect() as connection:
            connection.sendall(asked)
            assert [status for status, _ in answers(connection, 2)] == statuses


# Rewards, Prometheus


def test_rewards_find_their_episode_and_show_in_the_stats():
    rewards = Rewards(None, RewardSettings(), time.time)
    with serving(Pair(policy()), rewards=rewards) as running:
        running.act(observation=OBSERVATION, episode="e")
        assert running.request("POST", "/v1/reward", {"episode": "e", "return": 3})[1]["accepted"] == 1
        assert running.request("POST", "/v1/reward", {"episode": "e", "return": 3})[1]["duplicates"] == 1
        assert running.request("POST", "/v1/reward", {"episode": "never", "return": 3})[0] == 404
        assert running.request("POST", "/v1/reward", "{")[0] == 400
        stats = ServerStats.model_validate(running.stats())
    assert stats.rewards["accepted"] == 1
    assert (stats.episodes[0]["arm"], stats.episodes[0]["mean"]) == ("stable", 3.0)


@pytest.mark.parametrize("huge", [1e308, -1e308, 1.1e100, 10**18 * 10**90])
def test_a_return_that_sums_cannot_hold_is_refused(huge: float):
    rewards = Rewards(None, RewardSettings(), time.time)
    with serving(Pair(policy()), rewards=rewards) as running:
        running.act(observation=OBSERVATION, episode="e")
        status, answer = running.request("POST", "/v1/reward", {"episode": "e", "return": huge})
        assert (status, "-1e100 to 1e100" in answer["error"]["message"]) == (400, True)
        for value in (1e100, -1e100):
            running.act(observation=OBSERVATION, episode=str(value))
            assert running.request("POST", "/v1/reward", {"episode": str(value), "return": value})[0] == 202
        assert running.stats()["episodes"][0]["m2"] == 2e200


def test_metrics_are_the_numbers_of_the_stats():
    from prometheus_client.parser import text_string_to_metric_families

    with serving(Pair(policy())) as running:
        for _ in range(3):
            running.act(observations=[OBSERVATION] * 2)
        running.act(observation=[1])
        _, text = running.request("GET", "/metrics")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    arm = (("arm", "stable"), ("digest", "a" * 12))
    assert samples["ratchet_policy_requests_total", *arm] == 3
    assert samples["ratchet_policy_predictions_total", *arm] == 6
    assert samples["ratchet_policy_latency_seconds_count", *arm] == 3
    assert samples["ratchet_policy_mask_violations_total", *arm] == 0
    assert samples["ratchet_policy_nan_answers_total", *arm] == 0
    assert samples["ratchet_policy_breaker_open",] == 0
    assert samples["ratchet_policy_refusals_total", ("code", "wrong-shape")] == 1


# Orders


def folder_of(path: Path, seed: int, spec: PolicySpec = SPEC) -> tuple[str, str]:
    """A stored policy: its folder and its digest."""
    rng = np.random.default_rng(seed)
    parameters = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in parameter_shapes(spec).items()
    }
    artifact = make(spec, parameters, np.zeros((0, *spec.observation.shape), np.float32), PolicyLineage())
    write_folder(artifact, path)
    return str(path), artifact.digest


def test_a_swap_collects_nothing_on_the_way_of_answers(tmp_path: Path):
    collected: list[str] = []

    def collecting(phase: str, _info: object) -> None:
        collected.append(phase)

    with serving(Residents(), admin_token="boss") as running:
        gc.disable()
        gc.callbacks.append(collecting)
        frozen = gc.get_freeze_count()
        try:
            source, _ = folder_of(tmp_path / "one", 1)
            assert running.request("PUT", "/v1/policy", {"source": source}, BOSS)[0] == 200
        finally:
            gc.callbacks.remove(collecting)
            gc.enable()
    assert (collected, gc.get_freeze_count()) == ([], frozen)


def test_the_policy_of_the_start_does_not_replace_one_that_came_by_order(tmp_path: Path):
    first, second = folder_of(tmp_path / "one", 1), folder_of(tmp_path / "two", 2)
    residents = Residents()
    with serving(residents) as running:

        async def both() -> None:
            admin = running.server.admin
            ordered = asyncio.create_task(admin.swap(PolicyRequest(source=second[0])))
            await asyncio.sleep(0)  # it loads first
            await admin.swap(PolicyRequest(source=first[0]), first=True)
            await ordered

        running.run(both())
        assert residents.current
        assert residents.current.digest == second[1]


def test_a_policy_is_swapped_only_when_it_is_what_was_asked_for(tmp_path: Path):
    first, second = folder_of(tmp_path / "one", 1), folder_of(tmp_path / "two", 2)
    wide = SPEC.model_copy(update={"action": SpaceSpec(kind="Discrete", n=5, dtype="int64")})
    other, _ = folder_of(tmp_path / "other", 3, wide)

    with serving(Residents(), admin_token="boss") as running:

        def put(**body: Any) -> tuple[int, Any]:
            return running.request("PUT", "/v1/policy", body, BOSS)

        assert put(source=first[0], digest=first[1])[1]["digest"] == first[1]
        assert put(source=second[0], digest=first[1])[0] == 422
        assert put(source=str(tmp_path / "none"))[0] == 422
        assert put(source=other)[1]["error"]["code"] == "other-spaces"
        assert put(source=first[0], colour="red")[0] == 400
        assert running.act(observation=OBSERVATION)[1]["digest"] == first[1]
        running.act(observation=OBSERVATION, episode="kept")
        assert put(source=second[0])[1]["previous"] == first[1]
        assert running.act(observation=OBSERVATION, episode="kept")[1]["digest"] == first[1]
        assert running.act(observation=OBSERVATION)[1]["digest"] == second[1]
        put(source=second[0], keepEpisodes=False)
        assert running.act(observation=OBSERVATION, episode="kept")[1]["digest"] == second[1]
        assert running.stats()["swaps"] == 3


def test_without_an_admin_token_nobody_gives_orders(running: Running):
    assert running.request("PUT", "/v1/policy", {"source": "/"}, BOSS)[0] == 403
    assert running.request("PUT", "/v1/route", {"generation": 1}, BOSS)[0] == 403
