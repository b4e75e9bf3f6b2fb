"""The job's Redis user, on a real server: the whole data plane works under it, and nothing else does.

The user of the managed Redis comes from the operator's Secret, that of an external one from the docs.
"""

import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fragments import rollout
from ratchet_operator.build.redis import redis_secret
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError
from redisserver import RedisServer, free_port

from ratchet.api.v1alpha1.training import key_prefix
from ratchet.experience import DataPlaneLost, Fenced, Fragment, LearnerChannel, Ticket, WorkerChannel, encode
from ratchet.policies import EnvironmentSpec, SpaceSpec

ROOT = Path(__file__).parents[2]
PASSWORD = "drawn-by-the-operator"
SPACES = EnvironmentSpec(
    observation=SpaceSpec(kind="Box", shape=(4,), low=-1.0, high=1.0),
    action=SpaceSpec(kind="Discrete", dtype="int64", n=2),
)


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server with the ACL file of a job's Secret, as the job's user."""
    folder = tmp_path_factory.mktemp("managed")
    acl = folder / "users.acl"
    acl.write_text(redis_secret("team", "job-redis", {}, {}, "uid-1", PASSWORD)["stringData"]["users.acl"])
    with RedisServer(folder, free_port(), ("--aclfile", str(acl)), f"job:{PASSWORD}@") as server:
        yield server


@pytest.fixture
def external(redis: Redis, redis_server: RedisServer) -> Iterator[RedisServer]:
    """The shared server, as the user that docs/external-redis.md says to create for the namespace team-a."""
    text = (ROOT / "docs" / "external-redis.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("ACL SETUSER ratchet-team-a")]
    redis.execute_command(*line.split())
    yield replace(redis_server, login="ratchet-team-a:PASSWORD@", process=None)
    redis.execute_command("ACL", "DELUSER", "ratchet-team-a")


def use_everything(client: Redis, prefix: str) -> None:
    """Both ends of the data plane, each method of theirs, and what they do after a loss."""
    learner, worker = LearnerChannel(client, prefix), WorkerChannel(client, prefix)
    fenced = LearnerChannel(client, prefix)
    fenced.begin(0)
    epoch = learner.begin(4)
    assert worker.offer_spec(SPACES) == SPACES
    assert learner.environment_spec() == SPACES
    learner.publish(1, b"weights")
    found = worker.weights(None)
    assert found is not None
    assert found.blob == b"weights"
    learner.issue(
        [
            Ticket(kind="rollout", id=1, epoch=epoch, version=1),
            Ticket(kind="evaluate", id=2, epoch=epoch, version=1, episodes=1),
        ]
    )
    assert learner.outstanding() == 2
    ticket = worker.take(0.1)
    assert ticket is not None
    assert ticket.kind == "evaluate"
    assert worker.deliver(epoch, encode(rollout()))
    entries = learner.read(1, 1)
    assert isinstance(entries[0].outcome, Fragment)
    learner.settle([entry.id for entry in entries])
    with pytest.raises(Fenced):
        fenced.publish(2, b"late")
    client.delete(f"{prefix}out:{epoch}")
    with pytest.raises(DataPlaneLost):
        learner.read(1, 1)


def test_everything_that_the_channels_offer_is_used_above():
    source = inspect.getsource(use_everything)
    for end in (LearnerChannel, WorkerChannel):
        for name, member in vars(end).items():
            if not name.startswith("_") and callable(member):
                assert f".{name}(" in source, f"{end.__name__}.{name}"


def test_the_data_plane_works_under_the_managed_user(managed: RedisServer):
    with managed.client() as client:
        use_everything(client, key_prefix("team", "uid-1"))


def test_the_data_plane_works_under_the_user_that_the_docs_create(external: RedisServer):
    with external.client() as client:
        use_everything(client, key_prefix("team-a", "uid-1"))


OTHERS: tuple[tuple[Any, ...], ...] = (
    ("GET", "ratchet:team:uid-2:weights"), ("GET", "ratchet:other:uid-1:weights"), ("GET", "plain"),
    ("SET", "ratchet:team:uid-2:epoch", "9"), ("DEL", "ratchet:team:uid-2:tickets"),
    ("BLPOP", "ratchet:team:uid-2:tickets", "0.01"), ("HMGET", "ratchet:team:uid-2:weights", "blob"),
    ("XADD", "ratchet:team:uid-2:out:1", "*", "h", "x"),
    ("XREADGROUP", "GROUP", "learner", "me", "STREAMS", "ratchet:team:uid-2:out:1", ">"),
)  # fmt: skip
FORBIDDEN: tuple[tuple[Any, ...], ...] = (
    ("CONFIG", "GET", "*"), ("CONFIG", "SET", "maxmemory", "1"), ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"),
    ("SCAN", "0"), ("RANDOMKEY",), ("DBSIZE",), ("INFO",), ("MONITOR",), ("SLOWLOG", "GET"),
    ("ACL", "LIST"), ("ACL", "WHOAMI"), ("ACL", "SETUSER", "x", "on"), ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"), ("SCRIPT", "FLUSH"), ("SCRIPT", "KILL"), ("FUNCTION", "LIST"),
    ("EVAL", "return 1", "0"), ("SAVE",), ("BGSAVE",), ("SHUTDOWN",), ("REPLICAOF", "host", "1"),
    ("MODULE", "LIST"), ("PUBLISH", "ratchet:team:uid-1:x", "y"), ("SUBSCRIBE", "ratchet:team:uid-1:x"),
    ("SELECT", "1"), ("SWAPDB", "0", "1"), ("RENAME", "ratchet:team:uid-1:a", "ratchet:team:uid-1:b"),
    ("MIGRATE", "host", "1", "ratchet:team:uid-1:a", "0", "1"), ("OBJECT", "HELP"), ("COMMAND",),
)  # fmt: skip


@pytest.mark.parametrize("words", [*OTHERS, *FORBIDDEN], ids=lambda words: " ".join(words[:3]))
def test_the_managed_user_may_do_nothing_else(managed: RedisServer, words: tuple[Any, ...]):
    with managed.client() as client, pytest.raises(NoPermissionError):
        client.execute_command(*words)


@pytest.mark.parametrize("words", FORBIDDEN, ids=lambda words: " ".join(words[:3]))
def test_nor_may_the_user_of_the_docs(external: RedisServer, words: tuple[Any, ...]):
    with external.client() as client, pytest.raises(NoPermissionError):
        client.execute_command(*words)


def test_the_user_of_the_docs_reaches_its_namespace_only(external: RedisServer):
    with external.client() as client:
        client.set("ratchet:team-a:uid-1:spec", "x")
        for key in ("ratchet:team-b:uid-1:spec", "ratchet:team-a2:uid-1:spec", "plain"):
            with pytest.raises(NoPermissionError):
                client.get(key)


def test_a_script_reaches_no_further_than_its_user(managed: RedisServer):
    with managed.client() as client:
        script = client.script_load("return redis.call('GET', 'ratchet:team:uid-2:weights')")
        with pytest.raises(ResponseError, match="can't access at least one of the keys"):
            client.evalsha(script, 0)


@pytest.mark.parametrize("login", ["", "default:@", "default:guess@", "job:guess@"])
def test_nobody_else_gets_in(managed: RedisServer, login: str):
    with (
        replace(managed, login=login, process=None).client() as client,
        pytest.raises(AuthenticationError),
    ):
        client.get("ratchet:team:uid-1:spec")


def test_redis_holds_only_the_hash_of_the_password():
    made = redis_secret("team", "job-redis", {}, {}, "uid-1", PASSWORD)["stringData"]
    assert PASSWORD not in made["users.acl"]
    assert made["REDIS_URL"] == f"redis://job:{PASSWORD}@job-redis:6379/0"
