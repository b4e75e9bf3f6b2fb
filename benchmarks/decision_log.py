"""What the decision log costs the server that answers, its own threads, and the disk.

Usage: python benchmarks/decision_log.py [--decisions N]

Decisions are CartPole's. All figures are CPU time: of the event loop for `record` and `decided`, of the
process for the writer, which has nothing else to do here, and for the reader.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import numpy as np
from ratchet_inference.decisions.log import DecisionLog, LogSettings
from ratchet_inference.decisions.rewards import Rewards, RewardSettings

from ratchet.decisions import Decision
from ratchet.decisions.reading import read
from ratchet.decisions.sources import Folder


def decisions(count: int) -> list[Decision]:
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(count, 4)).astype(np.float32)
    logs = np.log(rng.uniform(0.2, 0.8, count).astype(np.float32)).tolist()
    start = time.time()
    return [
        Decision(
            f"6f1c0d9a2b3e4f50-1a2b-{i:x}", start + i / 20_000, "ab" * 32, "stable",
            f"6f1c0d9a2b3e-{i // 200}", i % 200, observations[i], None, i % 2, logs[i], None,
        )
        for i in range(count)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--decisions", type=int, default=200_000, help="(200,000)")
    rows = decisions(parser.parse_args().decisions)
    count = len(rows)
    with tempfile.TemporaryDirectory() as folder:
        log = DecisionLog(Path(folder), settings=LogSettings(queue=count))
        rewards = Rewards(None, RewardSettings(), time.time)

        began = time.process_time()
        for row in rows:
            log.record(row)
        record = (time.process_time() - began) / count
        began = time.process_time()
        for row in rows:
            rewards.decided(row)
        decided = (time.process_time() - began) / count

        spent = time.process_time()
        log.start()
        asyncio.run(log.close(600))
        writer = (time.process_time() - spent) / count
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
        began = time.process_time()
        found = len(read(Folder(Path(folder))))
        reading = (time.process_time() - began) / count
    print(f"record              {record * 1e9:7.0f} ns a decision, on the event loop")
    print(f"decided (rewards)   {decided * 1e9:7.0f} ns a decision, on the event loop")
    print(f"writer              {writer * 1e9:7.0f} ns a decision, in its own thread")
    print(f"reader              {reading * 1e9:7.0f} ns a decision")
    print(f"on disk             {size / count:7.1f} bytes a decision; written {found} of {count}")


if __name__ == "__main__":
    main()
