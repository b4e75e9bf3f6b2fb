"""How a client reads HTTP, without sockets."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratchet.client import PolicyError
from ratchet.client.http import Reading

CONTENT = b'{"a": "' + b"b" * 30 + b'"}'
FORMS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(CONTENT), CONTENT),
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\n"
    b"HTTP/1.1 200 OK\r\ncontent-length:%d\r\n\r\n%b" % (len(CONTENT), CONTENT),
    "chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"1\r\n{\r\nA;name=value\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n"
    % (CONTENT[1:11], len(CONTENT) - 11, CONTENT[11:]),
    "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b"%x\r\n%b\r\n0\r\nx: y\r\n\r\n" % (len(CONTENT), CONTENT),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@given(cuts=st.lists(st.integers(1, 200)))
def test_an_answer_is_the_same_however_it_is_cut(form: str, cuts: list[int]):
    content = FORMS[form]
    marks = [0, *sorted({cut for cut in cuts if cut < len(content)}), len(content)]
    reading = Reading()
    answers = [reading.feed(content[i:j]) for i, j in pairwise(marks)]

    assert answers[:-1] == [None] * (len(answers) - 1)
    assert answers[-1] is not None
    assert (answers[-1].status, answers[-1].body) == (200, CONTENT)
    assert answers[-1].reusable == (form != "trailers")


def test_an_answer_may_end_with_its_connection():
    reading = Reading()
    assert reading.feed(b"HTTP/1.0 200 OK\r\n\r\nall") is None
    assert reading.feed(b" of it") is None
    answer = reading.feed(b"")
    assert answer is not None
    assert (answer.body, answer.reusable) == (b"all of it", False)


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 204 None", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0", True),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0", False),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0", True),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0", False),
    ],
)
def test_whether_a_connection_takes_another_request(head: bytes, reusable: bool):
    answer = Reading().feed(head + b"\r\n\r\n")
    assert answer is not None
    assert answer.reusable is reusable
    after = Reading().feed(head + b"\r\n\r\nmore")
    assert after is not None
    assert after.reusable is False


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_rubbish_is_an_error_of_the_family(first: bytes, second: bytes):
    reading = Reading()
    try:
        for piece in (first, second, b""):
            if reading.feed(piece) is not None:
                return
    except PolicyError:
        return
    raise AssertionError("neither an answer nor an error")
