"""How a process finds Redis, without ever showing its password."""

from pathlib import Path

import pytest
from redis import Redis
from redisserver import RedisServer

from ratchet.experience import (
    ConnectionSettings,
    InvalidRedisUrl,
    Patience,
    RedisUnreachable,
    WorkerChannel,
    connect,
)

SECRET = "hunter2"


def test_the_mounted_file_wins_over_the_variable(tmp_path: Path):
    path = tmp_path / "url"
    path.write_text("redis://from-file:6379/0\n")
    environment = {"RATCHET_REDIS_URL_FILE": str(path), "REDIS_URL": "redis://from-variable"}
    assert ConnectionSettings.from_environment(environment).url == "redis://from-file:6379/0"


def test_the_variable_serves_without_a_file():
    assert ConnectionSettings.from_environment({"REDIS_URL": "redis://x"}).url == "redis://x"


@pytest.mark.parametrize("environment", [{}, {"REDIS_URL": " "}, {"RATCHET_REDIS_URL_FILE": "/nowhere/url"}])
def test_no_url_is_said_in_a_sentence(environment: dict[str, str]):
    with pytest.raises(InvalidRedisUrl, match="RATCHET_REDIS_URL_FILE"):
        ConnectionSettings.from_environment(environment)


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{SECRET}@host:6379/0",
        f"redis://:{SECRET}@host:port/0",
        f"redis://:{SECRET}@host:99999/0",
        f"redis://:{SECRET}@/0",
        f"redis://user:{SECRET}@host:6379/zero",
        f"redis://user:{SECRET}@[host:6379/0",
        SECRET,
    ],
)
def test_a_malformed_url_is_refused_without_showing_it(url: str):
    with pytest.raises(InvalidRedisUrl) as caught:
        connect(ConnectionSettings(url))
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_the_password_is_not_in_the_settings_text():
    assert SECRET not in repr(ConnectionSettings(f"redis://:{SECRET}@host"))


@pytest.mark.parametrize("user", ["", "someone"])
def test_a_refused_password_ends_at_once_and_is_not_shown(redis: Redis, redis_server: RedisServer, user: str):
    def no_second_try(_: float) -> None:
        pytest.fail("a refused password is tried again")

    url = redis_server.url.replace("//", f"//{user}:{SECRET}@")
    redis.config_set("requirepass", "another")
    try:
        channel = WorkerChannel(connect(ConnectionSettings(url)), "ratchet:x:", Patience(sleep=no_second_try))
        with pytest.raises(RedisUnreachable, match="user or password") as caught:
            channel.take(0.01)
    finally:
        redis.config_set("requirepass", "")
    assert SECRET not in str(caught.value)


def test_an_unreachable_server_is_not_shown_with_its_password():
    channel = WorkerChannel(
        connect(ConnectionSettings(f"redis://u:{SECRET}@127.0.0.1:1/0")), "ratchet:x:", Patience(total=0)
    )
    with pytest.raises(RedisUnreachable) as caught:
        channel.take(0.01)
    assert SECRET not in str(caught.value)
