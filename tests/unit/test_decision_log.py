"""The decision log against a real disk and a real S3 server: what is recorded is read again, or counted."""

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ratchet_inference.decisions.files import Files, Rolling
from ratchet_inference.decisions.log import DecisionLog, LogSettings
from redisserver import free_port
from s3server import S3Server

from ratchet.api.v1alpha1.training import S3
from ratchet.decisions import Decision, Reward
from ratchet.decisions.reading import Joining, LoggedDecisions, UnreadableLog, read
from ratchet.decisions.schema import DECISIONS, decision_batch
from ratchet.decisions.sources import Bucket, Folder

NOON = 1_767_268_800.0  # 2026-01-01T12:00:00Z
DIGEST = "ab" * 32
DEADLINE = 20.0


def decision(number: int = 0, **changes: Any) -> Decision:
    usual = Decision(
        f"id-{number}",
        NOON + number,
        DIGEST,
        "stable",
        "episode",
        number,
        [0.25, number],
        None,
        1,
        -0.7,
        None,
    )
    return usual._replace(**changes)


def reward(**changes: Any) -> Reward:
    return Reward(NOON + 5, None, None, 1.0, None, default=False, late=None)._replace(**changes)


def written(folder: Path, *rows: Decision | Reward, **bounds: Any) -> DecisionLog:
    """A log that took the rows and was closed."""
    log = DecisionLog(folder, settings=LogSettings(**bounds))
    for row in rows:
        if isinstance(row, Decision):
            log.record(row)
        else:
            log.record_reward(row)
    log.start()
    asyncio.run(log.close())
    return log


def logged(folder: Path, *rows: Decision | Reward, **arguments: Any) -> LoggedDecisions:
    written(folder, *rows)
    return read(Folder(folder), **arguments)


def files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


# What a row is


def test_a_decision_is_read_as_it_was_recorded(tmp_path: Path):
    propensity = float(np.float32(-0.693147))
    row = decision(
        observation=np.array([[1, 2], [3, 4]], np.float32), mask=[True, False], action=np.float32([0.1, -2]),
        log_probability=propensity, fallback="previous", time=NOON + 0.123456,
    )  # fmt: skip

    columns = logged(tmp_path, row).columns

    assert columns["observation"].tolist() == [[1, 2, 3, 4]]
    assert columns["mask"].tolist() == [[True, False]]
    assert columns["action"].tolist() == [[float(np.float32(0.1)), -2.0]]
    assert columns["log_probability"].tolist() == [propensity]
    assert columns["time"].tolist() == [np.datetime64("2026-01-01T12:00:00.123456").item()]
    assert [columns[name][0] for name in ("id", "digest", "arm", "episode", "t", "fallback")] == [
        "id-0", DIGEST, "stable", "episode", 0, "previous",
    ]  # fmt: skip


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
FLOATS = st.floats(width=32, allow_nan=False)
ROWS = st.builds(
    Decision,
    id=NAMES,
    time=st.floats(0, 4e9),
    digest=st.sampled_from(["", DIGEST, "cd" * 32]),
    arm=st.sampled_from(["stable", "canary"]),
    episode=st.none() | NAMES,
    t=st.none() | st.integers(0, 1 << 30),
    observation=st.lists(FLOATS, max_size=3) | FLOATS,
    mask=st.none() | st.lists(st.booleans(), max_size=3),
    action=st.integers(0, 1 << 52) | st.lists(FLOATS, max_size=3),
    log_probability=st.floats(max_value=0, allow_nan=False),
    fallback=st.none() | st.sampled_from(["previous", "scripted"]),
)


@given(st.lists(ROWS, min_size=1, max_size=6))
@settings(deadline=None)
def test_any_mixture_of_rows_survives_encoding(rows: list[Decision]):
    def numbers(value: Any) -> list[Any] | None:
        return None if value is None else np.atleast_1d(value).tolist()

    batch = decision_batch(rows)

    batch.validate(full=True)
    assert batch.schema == DECISIONS
    read_again = batch.drop_columns(["time"]).to_pylist()
    for row, again in zip(rows, read_again, strict=True):
        wanted = row._asdict() | {
            name: numbers(getattr(row, name)) for name in ("observation", "mask", "action")
        }
        del wanted["time"]
        assert again == wanted


def test_files_lie_by_day_and_policy(tmp_path: Path):
    written(
        tmp_path, decision(), decision(time=NOON + 86_400), decision(digest=""),
        decision(digest="sha256:../x"), reward(episode="e"),
    )  # fmt: skip

    assert sorted(path.rpartition("/")[0] for path in files(tmp_path)) == [
        "decisions/date=2026-01-01/policy=abababababababab",
        "decisions/date=2026-01-01/policy=none",
        "decisions/date=2026-01-01/policy=x",
        "decisions/date=2026-01-02/policy=abababababababab",
        "rewards/date=2026-01-01",
    ]


# What is lost is counted


def test_a_full_queue_drops_and_counts_and_goes_on(tmp_path: Path):
    log = written(tmp_path, *(decision(i) for i in range(150)), queue=100)

    counts = log.counts
    assert (counts.recorded, counts.written, counts.dropped["queue"]) == (150, 100, 50)
    assert len(read(Folder(tmp_path))) == 100


def test_a_row_that_no_column_holds_is_left_out_alone(tmp_path: Path):
    bad = [decision(3, observation=["x"]), decision(5, t="soon"), decision(7, id="\ud800")]
    log = written(tmp_path, *(decision(i) for i in range(3)), *bad, decision(8))

    assert log.counts.dropped == {"queue": 0, "unfit": 3, "disk": 0, "spool": 0}
    assert read(Folder(tmp_path)).columns["id"].tolist() == ["id-0", "id-1", "id-2", "id-8"]


def test_a_disk_that_fails_costs_rows_and_not_the_log(tmp_path: Path):
    (tmp_path / "decisions").write_text("in the way")
    log = DecisionLog(tmp_path)
    log.start()
    for i in range(10):
        log.record(decision(i))
    until(lambda: log.counts.dropped["disk"] == 10)

    (tmp_path / "decisions").unlink()
    log.record(decision(10))
    asyncio.run(log.close())

    assert log.counts.written == 1
    assert read(Folder(tmp_path)).columns["id"].tolist() == ["id-10"]


def test_large_observations_shorten_the_queue(tmp_path: Path):
    image = np.zeros(10_000, np.float32)
    log = DecisionLog(tmp_path, settings=LogSettings(queue=10_000, queue_bytes=80_000_000))
    log.record(decision(observation=image))
    log.start()
    until(lambda: log.counts.queued == 0)
    log._closing.set()  # pyright: ignore[reportPrivateUsage]
    until(lambda: log.counts.written == 1)

    for i in range(1_000):
        log.record(decision(i, observation=image))

    assert 128 <= log.counts.queued < 260


# When files end


def test_an_old_file_ends_without_new_rows(tmp_path: Path):
    log = DecisionLog(tmp_path, settings=LogSettings(rolling=Rolling(file_seconds=0.05)))
    log.start()
    log.record(decision())
    until(lambda: log.counts.written == 1)

    assert len(read(Folder(tmp_path))) == 1
    asyncio.run(log.close())


def test_rows_make_groups_and_bytes_make_files(tmp_path: Path):
    out = Files(tmp_path, "server", Rolling(group_rows=100, file_bytes=1))
    for first in range(0, 250, 50):
        out.add_decisions([decision(i) for i in range(first, first + 50)], NOON)
    out.finish_all()

    paths = sorted(tmp_path.rglob("*.parquet"))
    metadata: list[Any] = [pyarrow.parquet.read_metadata(path) for path in paths]
    assert [one.num_rows for one in metadata] == [100, 100, 50]
    assert [one.num_row_groups for one in metadata] == [1, 1, 1]


def test_a_file_that_is_being_written_is_not_seen(tmp_path: Path):
    out = Files(tmp_path, "server", Rolling(group_rows=1))
    out.add_decisions([decision()], NOON)

    assert len(read(Folder(tmp_path))) == 0
    out.finish_all()
    assert len(read(Folder(tmp_path))) == 1


def test_what_killed_servers_left_half_written_goes_when_it_is_old(tmp_path: Path):
    old, new = tmp_path / ".a.parquet.part", tmp_path / ".b.parquet.part"
    for part in (old, new):
        part.write_bytes(b"PAR1")
    os.utime(old, (1, 1))

    written(tmp_path)

    assert files(tmp_path) == [".b.parquet.part"]


# S3


@pytest.fixture
def bucket(s3: S3Server) -> S3:
    return S3(bucket="ratchet", prefix=f"log-{secrets.token_hex(4)}/", endpoint=s3.endpoint)


def uploading(bucket: S3, spool: Path, make_client: Callable[[S3], Any], **bounds: Any) -> DecisionLog:
    return DecisionLog(bucket, spool=spool, settings=LogSettings(**bounds), make_client=make_client)


def test_what_is_uploaded_is_read_from_the_bucket(s3: S3Server, bucket: S3, tmp_path: Path):
    log = uploading(bucket, tmp_path, lambda _: s3.client())
    log.start()
    log.record(decision())
    log.record_reward(reward(id="id-0", reward=3.0))
    asyncio.run(log.close())

    found = read(Bucket(bucket, s3.client()))
    assert found.columns["reward"].tolist() == [3.0]
    assert files(tmp_path) == []
    assert log.counts.uploaded == 2


def test_without_s3_files_wait_and_the_next_server_uploads_them(s3: S3Server, bucket: S3, tmp_path: Path):
    nowhere = S3Server(f"http://127.0.0.1:{free_port()}", "key", "secret")
    log = uploading(bucket, tmp_path, lambda _: nowhere.client())
    log.start()
    log.record(decision(1))
    asyncio.run(log.close())
    assert log.counts.upload_failures > 0
    assert len(files(tmp_path)) == 1

    after = uploading(bucket, tmp_path, lambda _: s3.client())
    after.start()
    asyncio.run(after.close())

    assert read(Bucket(bucket, s3.client())).columns["id"].tolist() == ["id-1"]
    assert files(tmp_path) == []


def test_s3_that_comes_back_gets_everything(s3: S3Server, bucket: S3, tmp_path: Path):
    nowhere = S3Server(f"http://127.0.0.1:{free_port()}", "key", "secret")
    back = False
    log = uploading(
        bucket, tmp_path, lambda _: (s3 if back else nowhere).client(), rolling=Rolling(file_seconds=0)
    )
    log.start()
    log.record(decision())
    until(lambda: log.counts.upload_failures > 0)

    back = True
    until(lambda: log.counts.uploaded == 1)

    assert len(read(Bucket(bucket, s3.client()))) == 1
    asyncio.run(log.close())


def test_a_full_spool_gives_up_its_oldest_files(bucket: S3, tmp_path: Path):
    def refuse(_: S3) -> Any:
        raise OSError("no network")

    written(tmp_path, decision(1), decision(2))
    old = next(tmp_path.rglob("*.parquet"))
    os.utime(old, (1, 1))
    rubbish = tmp_path / "rubbish.parquet"
    rubbish.write_bytes(b"PAR1")
    os.utime(rubbish, (0, 0))
    log = uploading(bucket, tmp_path, refuse, spool_bytes=old.stat().st_size)
    log.record(decision(3))
    log.start()
    asyncio.run(log.close())

    assert log.counts.dropped["spool"] == 2
    assert read(Folder(tmp_path)).columns["id"].tolist() == ["id-3"]


def test_a_log_in_s3_needs_a_spool(bucket: S3):
    with pytest.raises(ValueError, match="needs a spool"):
        DecisionLog(bucket)


# Reading


def test_an_empty_log_is_read(tmp_path: Path):
    found = read(Folder(tmp_path))
    assert len(found) == 0
    assert list(found.episodes()) == []


@pytest.mark.parametrize(
    ("rewards", "joining", "wanted"),
    [
        ([], Joining(), (np.nan, False, False)),
        ([], Joining(default=-1.0), (-1.0, True, False)),
        ([reward(reward=2.0)], Joining(), (2.0, False, False)),
        ([reward(reward=2.0), reward(reward=3.0, time=NOON + 6)], Joining(), (2.0, False, False)),
        ([reward(reward=0.0, default=True, time=NOON), reward(reward=2.0)], Joining(), (2.0, False, False)),
        ([reward(reward=2.0, time=NOON + 61)], Joining(), (np.nan, False, True)),
        (
            [reward(reward=0.5, default=True, time=NOON + 60), reward(reward=2.0, time=NOON + 61)],
            Joining(),
            (0.5, True, True),
        ),
        (
            [reward(reward=0.5, default=True, time=NOON + 60), reward(reward=2.0, time=NOON + 61)],
            Joining(late="keep"),
            (2.0, False, True),
        ),
        ([reward(reward=2.0, time=NOON + 61)], Joining(late="keep"), (2.0, False, True)),
        ([reward(reward=2.0, time=NOON + 61)], Joining(default=0.0), (0.0, True, True)),
        ([reward(reward=2.0, time=NOON + 61)], Joining(window=100), (2.0, False, False)),
    ],
    ids=["none", "default", "one", "first", "sent-beats-default", "late",
         "late-leaves-default", "late-kept-beats-default", "late-kept", "late-none", "wide"],
)  # fmt: skip
@pytest.mark.parametrize("by", ["id", "episode"])
def test_which_reward_counts(
    tmp_path: Path, rewards: list[Reward], joining: Joining, wanted: tuple[float, bool, bool], by: str
):
    name = "id-0" if by == "id" else "episode"
    rows = [one._replace(**{by: name}) for one in rewards]

    columns = logged(tmp_path, decision(), *rows, joining=joining).columns

    value, default, late = wanted
    np.testing.assert_equal(columns["reward" if by == "id" else "episode_return"][0], value)
    if by == "id":
        assert (columns["reward_default"][0], columns["reward_late"][0]) == (default, late)


def test_the_last_answer_counts_also_where_another_policy_or_arm_gave_it(tmp_path: Path):
    again = decision(0, digest="cd" * 32, arm="canary", time=NOON + 1)
    written(tmp_path, decision(0), again, decision(1))

    ours = read(Folder(tmp_path), digest=DIGEST)
    assert ours.columns["id"].tolist() == ["id-1"]
    assert read(Folder(tmp_path), arm="stable").columns["id"].tolist() == ["id-1"]
    assert read(Folder(tmp_path), arm="canary").columns["digest"].tolist() == ["cd" * 32]
    assert ours.repeated == 1


def test_rewards_of_other_servers_logs_are_joined(tmp_path: Path):
    written(tmp_path, decision(0), decision(1))
    found = logged(tmp_path, reward(id="id-1", reward=4.0), reward(id="elsewhere"))

    np.testing.assert_equal(found.columns["reward"].tolist(), [np.nan, 4.0])
    assert found.unmatched == 1


def test_of_an_answer_that_was_asked_for_twice_the_last_counts(tmp_path: Path):
    found = logged(tmp_path, decision(0, action=1), decision(0, time=NOON + 0.05, action=0))

    assert found.columns["action"].tolist() == [[0.0]]
    assert found.repeated == 1


def test_an_episode_is_complete_when_no_step_and_no_length_says_otherwise(tmp_path: Path):
    rows = [decision(i, episode=name, t=t, id=f"{name}{t}") for i, (name, t) in enumerate(
        [("whole", 0), ("whole", 1), ("gap", 0), ("gap", 2), ("headless", 1), ("short", 0), (None, 0)]
    )]  # fmt: skip
    found = logged(tmp_path, *rows, reward(episode="short", length=2), reward(episode="whole", length=2))

    names = ["" if name is None else name for name in found.columns["episode"]]
    complete = dict(zip(names, found.columns["episode_complete"].tolist(), strict=True))
    assert complete == {"whole": True, "gap": False, "headless": False, "short": False, "": False}


def test_episodes_come_with_their_steps_in_order(tmp_path: Path):
    rows = [decision(i, episode=name, t=t, id=f"{name}{t}") for i, (name, t) in enumerate(
        [("a", 1), ("b", 0), ("a", 0), (None, 0), ("b", 1)]
    )]  # fmt: skip
    found = logged(tmp_path, *rows, reward(episode="b", reward=9.0))

    episodes = {str(one["episode"][0]): one for one in found.episodes()}
    assert {name: one["id"].tolist() for name, one in episodes.items()} == {
        "a": ["a0", "a1"],
        "b": ["b0", "b1"],
    }
    assert episodes["b"]["episode_return"].tolist() == [9.0, 9.0]


def test_days_policy_and_arm_choose(tmp_path: Path):
    day = 86_400
    rows = [
        decision(0, id="today"), decision(0, id="tomorrow", time=NOON + day),
        decision(0, id="other", digest="cd" * 32), decision(0, id="twin", digest=DIGEST[:16] + "00" * 24),
        decision(0, id="canary", arm="canary"),
    ]  # fmt: skip
    written(tmp_path, *rows, reward(id="tomorrow", time=NOON + day + 1))

    def ids(**arguments: Any) -> set[str]:
        return set(read(Folder(tmp_path), **arguments).columns["id"])

    first = date(2026, 1, 1)
    assert ids(until=first) == {"today", "other", "twin", "canary"}
    assert ids(since=date(2026, 1, 2)) == {"tomorrow"}
    assert ids(digest=DIGEST) == {"today", "tomorrow", "canary"}
    assert ids(arm="canary") == {"canary"}
    assert ids(until=first, digest=DIGEST, arm="stable") == {"today"}


def test_observations_of_several_lengths_are_rows_of_their_own(tmp_path: Path):
    columns = logged(tmp_path, decision(0, observation=[1.0]), decision(1, observation=[1.0, 2.0])).columns
    assert [row.tolist() for row in columns["observation"]] == [[1.0], [1.0, 2.0]]


def test_what_is_no_log_is_refused(tmp_path: Path):
    file = tmp_path / "decisions" / "date=2026-01-01" / "x.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"PAR1 rubbish")
    with pytest.raises(UnreadableLog, match="is no file of a decision log"):
        read(Folder(tmp_path))


def test_a_newer_version_is_refused(tmp_path: Path):
    file = tmp_path / "decisions" / "date=2026-01-01" / "x.parquet"
    file.parent.mkdir(parents=True)
    table: Any = pyarrow.Table.from_batches([decision_batch([decision()])])
    pyarrow.parquet.write_table(table.replace_schema_metadata({"ratchet.schema": "2"}), file)
    with pytest.raises(UnreadableLog, match="has version 2"):
        read(Folder(tmp_path))
