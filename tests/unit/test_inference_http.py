"""The server's HTTP against clients that are slow, wrong, hostile, many, or gone."""

import asyncio
import gc
import json
import re
import socket
import ssl
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policyserver import (
    RECURRENT,
    SPEC,
    Broken,
    Pair,
    Running,
    answers,
    eventually,
    policy,
    post,
    send_to,
    serving,
)
from ratchet_inference.decisions.rewards import Rewards, RewardSettings
from test_inference_routing import http_answer, stand_in

from ratchet.api.v1alpha1.serverstats import Route
from ratchet.policies import PolicySpec
from ratchet.policies.serving import Decisions

GOOD = '{"observation": [1, 2, 3, 4]}'


@pytest.fixture(scope="module")
def running():
    with serving(Pair(policy()), max_body_bytes=65_536) as running:
        yield running


def send_until_closed(connection: socket.socket, data: bytes) -> None:
    for _ in range(10_000):
        connection.sendall(data)


def end_of(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    found = b""
    while chunk := connection.recv(65_536):
        found += chunk
    return found


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline


def test_a_request_may_come_in_any_pieces(running: Running):
    with running.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in post(GOOD):
            connection.sendall(bytes([byte]))
        assert answers(connection, 1)[0][0] == 200


def test_a_body_may_be_chunked(running: Running):
    with running.connect() as connection:
        head = b"POST /v1/act HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        half = len(GOOD) // 2
        pieces = [GOOD[:half].encode(), GOOD[half:].encode(), b""]
        connection.sendall(head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces))
        assert answers(connection, 1)[0][0] == 200


def test_answers_keep_the_order_of_pipelined_requests(running: Running):
    names = [f"n{i}" for i in range(500)]
    bodies = [json.dumps({"observation": [1, 2, 3, 4], "id": name}) for name in names]
    with running.connect() as connection:
        connection.sendall(b"".join(map(post, bodies)))
        assert [answer["id"] for _, answer in answers(connection, 500)] == names


IN_AN_EPISODE = '{"observation": [1, 2, 3, 4], "episode": "a"}'
A_RETURN = '{"episode": "a", "return": 1, "length": 1}'


@pytest.mark.parametrize(
    ("spec", "path", "body", "ends"),
    [
        (SPEC, "/v1/act", GOOD, True),
        (SPEC, "/v1/act", IN_AN_EPISODE, False),
        (SPEC, "/v1/reward", A_RETURN, True),
        (RECURRENT, "/v1/reward", A_RETURN, False),
    ],
)
def test_an_old_connection_ends_between_episodes(spec: PolicySpec, path: str, body: str, ends: bool):
    rewards = Rewards(None, RewardSettings(), time.time)
    with (
        serving(Pair(policy(spec=spec)), rewards=rewards, connection_seconds=0) as running,
        running.connect() as connection,
    ):
        connection.sendall(post(body, path))
        found = b""
        while not found.endswith(b"}"):
            found += connection.recv(65_536)
        assert (b"connection: close" in found) is ends
        if ends:
            assert connection.recv(1) == b""
        else:
            connection.sendall(post(IN_AN_EPISODE))
            assert answers(connection, 1)[0][0] == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"POST /v1/act HTTP/1.1\r\ncontent-length: 70000\r\n\r\n", 413),
        (b"POST /v1/act HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n11000\r\n" + b" " * 0x11000, 413),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: %b\r\n" % (i, b"v" * 500) for i in range(100)), 431),
        (b"POST /v1/act HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST /v1/act HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400),
    ],
    ids=lambda x: str(x)[:30],
)  # fmt: skip
def test_what_is_no_request_is_refused_and_the_connection_ends(
    running: Running, request_: bytes, status: int
):
    with running.connect() as connection:
        connection.sendall(request_)
        found = end_of(connection)
    assert found.startswith(b"HTTP/1.1 %d" % status)
    assert b"connection: close" in found


def test_a_header_without_end_is_refused(running: Running):
    with running.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: ")
        connection.sendall(b"a" * 1_000_000)
        assert end_of(connection).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/act", 405), ("POST", "/v1/nothing", 404), ("DELETE", "/healthz", 405), ("GET", "/", 404),
     ("PUT", "/v1/policy", 403), ("GET", "/v1/episode", 400), ("POST", "/v1/reward", 404)],
)  # fmt: skip
def test_paths_and_methods(running: Running, method: str, path: str, status: int):
    found, answer = running.request(method, path, "{}")
    assert found == status
    assert answer["error"]["message"]


def test_head_has_no_body(running: Running):
    with running.connect() as connection:
        connection.sendall(b"HEAD /healthz HTTP/1.1\r\nconnection: close\r\n\r\n")
        head, _, body = end_of(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body == b""


def test_a_client_that_offers_h2c_is_answered(running: Running):
    with running.connect() as connection:
        connection.sendall(
            b"POST /v1/act HTTP/1.1\r\nconnection: Upgrade\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n%b"
            % (len(GOOD), GOOD.encode())
        )
        connection.sendall(post(GOOD))
        assert [status for status, _ in answers(connection, 2)] == [200, 200]


def test_a_client_that_stops_sending_still_gets_its_answers(running: Running):
    with running.connect() as connection:
        connection.sendall(post(GOOD) * 3)
        connection.shutdown(socket.SHUT_WR)
        assert end_of(connection).count(b"HTTP/1.1 200") == 3


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), cut=st.integers(0, 300))
def test_no_bytes_stop_the_server(running: Running, data: bytes, cut: int):
    with running.connect() as connection:
        connection.sendall(data[:cut])
        connection.sendall(data[cut:])
        connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            end_of(connection)
    assert running.request("POST", "/v1/act", GOOD)[0] == 200


ANSWER = re.compile(rb"HTTP/1\.1 (?!100 )\d{3} ")


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bool]:
    """A complete request as bytes, and whether it is the last that its connection may carry."""
    method = draw(st.sampled_from(["GET", "POST", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT"]))
    version = draw(st.sampled_from(["1.1", "1.1", "1.1", "1.0"]))
    path = draw(st.sampled_from(["/v1/act", "/v1/episode", "/healthz", "/nothing", "/v1/policy"]))
    lines = [f"{method} {'a:80' if method == 'CONNECT' else path} HTTP/{version}", "host: x"]
    connection = draw(
        st.sampled_from(["", "", "keep-alive", "close", "Upgrade", "Upgrade", "Upgrade, close"])
    )
    last = method == "CONNECT" or "close" in connection or (version == "1.0" and connection != "keep-alive")
    if connection:
        lines.append(f"connection: {connection}")
    upgrade = draw(st.sampled_from(["", "h2c", "websocket", "WebSocket", "TLS/1.0"]))
    if upgrade:
        lines.append(f"upgrade: {upgrade}")
    if draw(st.booleans()):
        lines.append("expect: 100-continue")
    body = draw(st.sampled_from([b"", GOOD.encode(), b"x" * 300, post(GOOD)]))
    if method == "CONNECT":
        body = b""
    elif draw(st.booleans()):
        lines.append("transfer-encoding: chunked")
        size = draw(st.integers(1, 400))
        extension = draw(st.sampled_from([b"", b";a=b"]))
        chunks = [body[i : i + size] for i in range(0, len(body), size)]
        both = b"upgrade: %b\r\nconnection: %b\r\n"
        offers = [both % (to, how) for to in (b"h2c", b"websocket") for how in (b"Upgrade", b"close")]
        trailers = draw(st.sampled_from([b"", b"x: y\r\n", *offers]))
        # The parser ends a connection of 1.0 by what its head says alone.
        last |= b"close" in trailers and version == "1.1"
        body = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
        body += b"0\r\n%b\r\n" % trailers
    elif body or draw(st.booleans()):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body, last


@settings(max_examples=150, deadline=None)
@given(
    sent=st.lists(requests(), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 3000), max_size=4),
    missing=st.integers(0, 60),
)
def test_each_complete_request_gets_one_answer_until_the_connection_ends(
    running: Running, sent: list[tuple[bytes, bool]], cuts: list[int], missing: int
):
    data = b"".join(request for request, _ in sent)
    data = data[: len(data) - missing]
    complete = due = 0
    for request, last in sent:
        complete += len(request)
        if complete > len(data):
            break
        due += 1
        if last:
            break
    found = b""
    with running.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        with suppress(OSError):  # it has closed
            for first, end in pairwise(edges):
                connection.sendall(data[first:end])
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while chunk := connection.recv(65_536):
                found += chunk
    assert len(ANSWER.findall(found)) == due
    assert running.request("POST", "/v1/act", GOOD)[0] == 200


def test_an_offer_that_is_not_taken_is_answered_once_and_the_connection_goes_on(running: Running):
    offer = b"connection: Upgrade\r\nupgrade: websocket\r\n"
    asked = post(GOOD).replace(b"host: x\r\n", offer)
    wrong = b"GET /v1/episode HTTP/1.1\r\n" + offer + b"\r\n"
    with running.connect() as connection:
        connection.sendall((asked + wrong) * 1000 + post(GOOD))
        assert [status for status, _ in answers(connection, 2001)] == [200, 400] * 1000 + [200]


def test_a_request_to_be_a_proxy_is_refused_and_the_connection_ends(running: Running):
    with running.connect() as connection:
        connection.sendall(b"CONNECT a:80 HTTP/1.1\r\nhost: x\r\n\r\nanything")
        found = end_of(connection)
    assert found.startswith(b"HTTP/1.1 405")
    assert len(ANSWER.findall(found)) == 1


@pytest.mark.parametrize("end", [b"0\r\nx: ", b"1;", b"0\r\n" + b"a: b\r\n"])
def test_a_trailer_or_extension_without_end_is_refused(running: Running, end: bytes):
    with running.connect() as connection:
        connection.sendall(b"POST /v1/act HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + end)
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall((b"a" * 10 if end[-1:] != b"\n" else end[3:]) * 400_000)
        assert end_of(connection).startswith(b"HTTP/1.1 431")


def test_a_trailer_is_no_header():
    with serving(Pair(policy()), token="sesame") as running, running.connect() as connection:
        chunk = b"%x\r\n%b\r\n0\r\nauthorization: Bearer sesame\r\n\r\n" % (len(GOOD), GOOD.encode())
        connection.sendall(b"POST /v1/act HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + chunk)
        assert answers(connection, 1)[0][0] == 401


def test_a_connection_that_is_closed_leaves_nothing_to_collect(running: Running):
    gc.disable()
    try:
        with running.connect() as connection:
            connection.sendall(post(GOOD))
            answers(connection, 1)
            open_ = running.call(lambda: [weakref.ref(one) for one in running.server.listener.connections])
        assert len(open_) == 1
        until(lambda: open_[0]() is None)
    finally:
        gc.enable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
FIELDS = ("observation", "observations", "episode", "episodes", "id", "mask", "masks", "deterministic",
          "temperature", "seed")  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(body=JSON | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5))
def test_any_json_gets_an_answer_or_a_clear_refusal(running: Running, body: object):
    for path in ("/v1/act", "/v2/models/policy/infer", "/v1/reward"):
        status, answer = running.request("POST", path, json.dumps(body).encode())
        assert status == 200 or (400 <= status < 500 and answer["error"])


@settings(max_examples=80, deadline=None)
@given(
    inputs=st.lists(
        st.fixed_dictionaries(
            {
                "name": st.sampled_from(["observation", "mask", "episode", "other"]),
                "datatype": st.sampled_from(["FP32", "BOOL", "BYTES", "FP8"]),
                "shape": st.lists(st.integers(-2, 5), max_size=3) | JSON,
                "data": st.lists(st.floats(-1e9, 1e9) | st.booleans(), max_size=20) | JSON,
            }
        ),
        max_size=3,
    ),
    parameters=JSON,
)
def test_any_tensor_gets_an_answer_or_a_clear_refusal(running: Running, inputs: object, parameters: object):
    body = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    status, answer = running.request("POST", "/v2/models/policy/infer", body)
    assert status == 200 or (400 <= status < 500 and isinstance(answer["error"], str))


def test_slow_clients_are_sent_away_and_idle_ones_closed():
    with (
        serving(Pair(policy()), request_seconds=0.2, idle_seconds=0.5) as running,
        running.connect() as slow,
        running.connect() as idle,
        running.connect() as body,
    ):
        slow.sendall(b"POST /v1/act HT")
        body.sendall(b"POST /v1/act HTTP/1.1\r\ncontent-length: 100\r\n\r\n{")
        assert end_of(slow).startswith(b"HTTP/1.1 408")
        assert end_of(body).startswith(b"HTTP/1.1 408")
        assert end_of(idle) == b""


CANARYS = {"id": "i", "action": 1, "logProbability": -0.5, "digest": "c" * 64, "arm": "canary",
           "value": None, "fallback": None, "episode": None, "t": None}  # fmt: skip
CLOSE = b"connection: close\r\n"


def wait_until_one_is_sent_away(running: Running):
    with running.connect() as slow:
        slow.sendall(b"POST /v1/act HT")
        assert end_of(slow).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("end", ["closes", "speaks 1.0", "half-closed", "drain"])
def test_a_last_answer_may_take_longer_than_a_client_may(end: str):
    asked, may_answer = threading.Event(), threading.Event()

    def late(_: bytes) -> bytes:
        asked.set()
        assert may_answer.wait(20)
        return http_answer(CANARYS)

    with (
        stand_in(late) as port,
        serving(Pair(policy()), canary_ms=20_000, request_seconds=0.2) as running,
    ):
        send_to(running, port, 1.0)
        request = post(GOOD)
        if end == "closes":
            request = request.replace(b"host: x\r\n", CLOSE)
        elif end == "speaks 1.0":
            request = request.replace(b"HTTP/1.1", b"HTTP/1.0")
        elif end == "drain":
            running.server.listener.draining = True  # as while the server waits for traffic to end
        with running.connect() as connection:
            connection.sendall(request)
            if end == "half-closed":
                connection.shutdown(socket.SHUT_WR)
            assert asked.wait(20)
            # A client that comes after one that was sent away waits for as long as between two looks at ours.
            wait_until_one_is_sent_away(running)
            wait_until_one_is_sent_away(running)
            may_answer.set()
            assert end_of(connection).startswith(b"HTTP/1.1 200")
        running.server.listener.draining = False


def test_a_client_that_does_not_take_its_last_answer_is_cut():
    """Refused with a body that was not read, so that it is left to the client to close."""
    with serving(Pair(policy()), request_seconds=0.3) as running, running.connect() as deaf:
        deaf.sendall(b"POST /v1/act HTTP/1.1\r\ncontent-length: 9000000\r\n\r\n")
        listener = running.server.listener
        until(lambda: listener.refusals)
        until(lambda: not listener.connections)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_until_closed(deaf, b"x")


def test_a_client_that_does_not_read_is_not_buffered_for_ever():
    with serving(Pair(policy()), request_seconds=0.3) as running, running.connect() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(20)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_until_closed(deaf, post(GOOD) * 100)
        assert running.act(observation=[1, 2, 3, 4])[0] == 200


def test_more_connections_than_allowed_are_refused_and_the_others_go_on():
    with serving(Pair(policy()), max_connections=10) as running:
        held = [running.connect() for _ in range(10)]
        for connection in held:
            connection.sendall(post(GOOD))
            assert answers(connection, 1)[0][0] == 200
        with running.connect() as one_more:
            assert end_of(one_more).startswith(b"HTTP/1.1 503")
        held[0].sendall(post(GOOD))
        assert answers(held[0], 1)[0][0] == 200
        for connection in held:
            connection.close()


def test_only_those_with_the_token_are_answered():
    with serving(Pair(policy()), token="sesame") as running:
        right = {"authorization": "Bearer sesame"}
        assert running.request("POST", "/v1/act", GOOD)[0] == 401
        assert running.request("POST", "/v1/act", GOOD, {"authorization": "Bearer no"})[0] == 401
        assert running.request("POST", "/v1/act", GOOD, right)[0] == 200
        assert running.request("POST", "/v2/models/policy/infer", "{}")[0] == 401
        assert running.request("GET", "/v1/episode")[0] == 401
        assert running.request("POST", "/v1/reward", "{}")[0] == 401
        assert running.request("GET", "/readyz")[0] == 200


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days",
         "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem",
         "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


def test_with_a_client_ca_only_known_clients_connect(certificates: Path):
    cert, key = str(certificates / "cert.pem"), str(certificates / "key.pem")
    with serving(Pair(policy()), tls_cert=cert, tls_key=key, tls_client_ca=cert) as running:
        context = ssl.create_default_context(cafile=cert)
        with (
            running.connect() as raw,
            context.wrap_socket(raw, server_hostname="localhost") as stranger,
            suppress(OSError),  # an alert, or a reset
        ):
            stranger.sendall(post(GOOD))
            assert stranger.recv(100) == b""
        context.load_cert_chain(cert, key)
        with running.connect() as raw, context.wrap_socket(raw, server_hostname="localhost") as known:
            known.sendall(post(GOOD))
            assert answers(known, 1)[0][0] == 200


def test_requests_without_pause_are_no_endless_header(running: Running):
    """Each read of the server ends within the head of a request, and so begins the next one."""
    one = post(GOOD)
    with running.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(one[:20])
        for _ in range(40):
            connection.sendall(one[20:] + one * 9 + one[:20])
            assert {status for status, _ in answers(connection, 10)} == {200}


def test_where_clients_need_a_certificate_probes_have_a_port_of_their_own(certificates: Path):
    cert, key = str(certificates / "cert.pem"), str(certificates / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    tls = {"tls_cert": cert, "tls_key": key, "tls_client_ca": cert}
    with serving(Pair(policy()), operations_port=port, admin_token="boss", **tls) as running:
        running.server.port, https = port, running.server.port
        assert running.request("GET", "/readyz")[0] == 200
        assert running.stats()["ready"]
        assert running.request("POST", "/v1/act", GOOD)[0] == 404
        assert running.request("PUT", "/v1/route", "{}")[0] == 401
        running.server.port = https


def test_a_canary_is_asked_over_tls_with_our_own_certificate(certificates: Path):
    cert, key = str(certificates / "cert.pem"), str(certificates / "key.pem")
    tls = {"tls_cert": cert, "tls_key": key, "tls_client_ca": cert}
    with (
        serving(Pair(policy("c")), **tls) as canary,
        serving(Pair(policy("a")), canary_ms=5000, **tls) as stable,
    ):
        route = Route(generation=1, canary=f"https://localhost:{canary.port}", weight=1.0)
        stable.call(lambda: stable.server.dispatch.set_route(route))
        eventually(lambda: stable.server.dispatch.breaker == "Closed")
        context = ssl.create_default_context(cafile=cert)
        context.load_cert_chain(cert, key)
        with stable.connect() as raw, context.wrap_socket(raw, server_hostname="localhost") as known:
            known.sendall(post(GOOD))
            ((_, answer),) = answers(known, 1)
    assert (answer["digest"][0], answer["fallback"]) == ("c", None)


def test_a_drain_answers_what_was_asked_and_closes_what_is_idle():
    def slow(decisions: Decisions) -> Decisions:
        time.sleep(0.02)  # the policy's own time
        return decisions

    watched = Broken(policy(), slow)
    with serving(Pair(watched), max_delay_ms=10_000) as running:
        with running.connect() as busy, running.connect() as idle:
            idle.sendall(post(GOOD))
            answers(idle, 1)
            busy.sendall(post(GOOD) * 20)
            deadline = time.monotonic() + 10
            while sum(watched.batches) < 2 and time.monotonic() < deadline:
                pass
            running.run(running.server.drain())
            found = end_of(busy)
            assert end_of(idle) == b""
        assert found.count(b"HTTP/1.1 200") == 20
        with pytest.raises(OSError):  # noqa: PT011 - nobody listens any more
            running.connect()


def test_while_it_drains_each_answer_asks_the_client_to_go():
    with serving(Pair(policy()), drain_delay_seconds=0.5) as running:
        draining = asyncio.run_coroutine_threadsafe(running.server.drain(), running.loop)
        deadline = time.monotonic() + 10
        while not running.server.listener.draining and time.monotonic() < deadline:
            pass
        assert running.request("GET", "/readyz")[0] == 503
        with running.connect() as connection:
            connection.sendall(post(GOOD))
            found = end_of(connection)
        draining.result(20)
    assert found.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in found


def test_a_drain_answers_those_who_came_after_all_others_had_left():
    asked, may_answer = threading.Event(), threading.Event()

    def late(_: bytes) -> bytes:
        asked.set()
        assert may_answer.wait(20)
        return http_answer(CANARYS)

    with stand_in(late) as port, serving(Pair(policy()), canary_ms=20_000) as running:
        listener = running.server.listener
        with running.connect() as first:
            first.sendall(post(GOOD))
            answers(first, 1)
            send_to(running, port, 1.0)
            listener.draining = True  # as while the server waits for traffic to end
        until(lambda: not listener.connections)
        with running.connect() as second:
            second.sendall(post(GOOD))
            assert asked.wait(20)
            draining = asyncio.run_coroutine_threadsafe(listener.drain(20.0), running.loop)
            running.call(lambda: None)
            may_answer.set()
            found = end_of(second)
        draining.result(20)
    assert found.startswith(b"HTTP/1.1 200")
