"""`ratchet-trainer`: one trainer process, configured by a file and a few variables (see `settings`).

What is slow at a start happens side by side: torch is imported on a thread of its own while Redis, S3 and the
first worker are reached.
"""

import hashlib
import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from types import FrameType
from typing import Any, TypeVar

# Small matrices gain nothing from threads, and trainer and workers share nodes. Read when torch is imported.
for _library in ("OMP", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

from ratchet import __version__  # noqa: E402 - after the variables above
from ratchet.api.v1alpha1 import ExitCode, TrainerStatus  # noqa: E402
from ratchet.checkpoints import (  # noqa: E402
    CheckpointStore,
    CheckpointsUnreadable,
    Lineage,
    Loaded,
    StorageDenied,
    StorageUnavailable,
    Superseded,
)
from ratchet.checkpoints import connect as connect_storage  # noqa: E402
from ratchet.configuration import InvalidConfiguration  # noqa: E402
from ratchet.experience import (  # noqa: E402
    ConnectionSettings,
    Fenced,
    InvalidRedisUrl,
    LearnerChannel,
    Patience,
    RedisUnreachable,
    connect,
)
from ratchet.lastwords import fits, leave, write_last_words  # noqa: E402
from ratchet.logs import write_json_lines  # noqa: E402
from ratchet.policies.spec import EnvironmentSpec  # noqa: E402
from ratchet_trainer.algorithms.errors import Diverged  # noqa: E402
from ratchet_trainer.board import Board  # noqa: E402
from ratchet_trainer.interruption import Interrupted, pause  # noqa: E402
from ratchet_trainer.kept import KeptFile  # noqa: E402
from ratchet_trainer.metrics import Metrics  # noqa: E402
from ratchet_trainer.settings import Settings, read_settings  # noqa: E402
from ratchet_trainer.trackers import TensorBoard, Tracker, tracker  # noqa: E402
from ratchet_trainer.web import serve  # noqa: E402

log = logging.getLogger("ratchet_trainer")

STORAGE_PATIENCE_SECONDS = 120.0
UNHEARD_SECONDS, LOOK_FOR_THE_END_SECONDS = 60.0, 0.5
LOOK_FOR_WORKERS_SECONDS = 0.1
T = TypeVar("T")


def main() -> None:
    """Runs one trainer and exits with a code of `ExitCode`, or 0 when asked to end."""
    write_json_lines()
    stop = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    code = run(os.environ, stop)
    sys.stdout.flush()
    # Threads that wait on a network must not hold up the end.
    os._exit(code)


def run(environment: Mapping[str, str], stop: threading.Event) -> int:
    """Trains until asked to end; the exit code. The last words go where RATCHET_TERMINATION_LOG says."""
    said = ""
    try:
        settings = read_settings(environment)
        board = Board(
            TrainerStatus(
                uid=settings.config.uid,
                attempt=settings.attempt,
                epoch=0,
                state="Starting",
                device=settings.device,
            )
        )
        try:
            _train(settings, environment, stop, board)
        finally:
            said = _last_status(board.status)
        if board.status.state == "Finished":
            write_last_words(environment, said, log)
    except Interrupted:
        log.info("ends as asked, with nothing to save")
    except (InvalidConfiguration, InvalidRedisUrl) as error:
        return leave(environment, ExitCode.CONFIG, str(error), log)
    except (StorageDenied, StorageUnavailable) as error:
        return leave(environment, ExitCode.STORAGE, str(error), log)
    except Diverged as error:
        return leave(environment, ExitCode.DIVERGED, str(error), log, before=said)
    except RedisUnreachable as error:
        return leave(environment, ExitCode.REDIS, str(error), log)
    except (Fenced, Superseded) as error:
        return leave(environment, ExitCode.FENCED, str(error), log)
    except CheckpointsUnreadable as error:
        return leave(environment, ExitCode.CHECKPOINTS, str(error), log)
    except Exception as error:
        log.exception("failed")
        return leave(environment, 1, f"{type(error).__name__}: {error}", log)
    return 0


def _train(settings: Settings, environment: Mapping[str, str], stop: threading.Event, board: Board) -> None:
    config = settings.config
    metrics = Metrics(config.namespace, config.name)
    serve(board, metrics.registry, settings.port)
    heavy = _in_background(_import_heavy)

    store = CheckpointStore(
        connect_storage(config.checkpoint.s3), config.checkpoint.s3, config.storage_prefix
    )
    found = _patiently(store.names, stop, board)
    resumed = _resume(store, heavy, stop, board) if found else None
    if resumed is not None and resumed.finished is not None:
        return _serve_until_heard(stop, board)

    redis = connect(ConnectionSettings.from_environment(environment))
    channel = LearnerChannel(redis, config.key_prefix, Patience(sleep=partial(pause, stop)))
    # Above every claim too, for Redis may have lost what it knew.
    claims = _patiently(store.claims, stop, board)
    epoch = channel.begin(max([resumed.epoch if resumed else 0, *(held for held, _ in claims)]))
    _patiently(partial(store.claim, epoch), stop, board)
    if _patiently(store.names, stop, board) != found:
        # A trainer before this one stored one more before it was fenced.
        resumed = _resume(store, heavy, stop, board)
        if resumed is not None and resumed.finished is not None:
            return _serve_until_heard(stop, board)
    log.info("began", extra={"fields": {"epoch": epoch, "attempt": settings.attempt}})
    board.pin(board.status.model_copy(update={"epoch": epoch, "state": "WaitingForWorkers"}))
    spaces = resumed.environment if resumed else _spaces(channel, stop, board)

    modules = heavy()
    board_files = TensorBoard(f"attempt-{settings.attempt}-epoch-{epoch}")
    extra = tracker(settings.tracker, config)
    trackers: list[Tracker] = [board_files] if extra is None else [board_files, extra]
    lineage = _lineage(settings, resumed.digest if resumed else None)
    kept = KeptFile(settings.kept_file)
    saver = modules.saving.Saver(store, config.checkpoint, lineage, board_files.files, kept.names)
    if resumed is not None:
        saver.remember(resumed.checkpoints)
    parts = modules.learner.Parts(settings, channel, saver, board, metrics, trackers, stop)
    learner = modules.learner.Learner(parts, spaces, resumed)
    learner.run()
    return _serve_until_heard(stop, board)


class _Heavy:
    """The modules that import torch."""

    def __init__(self) -> None:
        self.learner: Any = importlib.import_module("ratchet_trainer.learner")
        self.saving: Any = importlib.import_module("ratchet_trainer.saving")
        self.resume: Any = importlib.import_module("ratchet_trainer.resume")


def _import_heavy() -> _Heavy:
    import torch

    torch.set_num_threads(1)
    return _Heavy()


def _in_background(work: Callable[[], T]) -> Callable[[], T]:
    """Starts `work` on a thread; the answer waits for it and raises what it raised."""
    results: list[T] = []
    failures: list[BaseException] = []

    def do() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            failures.append(error)

    thread = threading.Thread(target=do, name="imports", daemon=True)
    thread.start()

    def answer() -> T:
        thread.join()
        if failures:
            raise failures[0]
        return results[0]

    return answer


def _resume(store: CheckpointStore, heavy: Callable[[], _Heavy], stop: threading.Event, board: Board) -> Any:
    """The newest whole checkpoint, read and shown; None where there is none."""
    loaded = _patiently(store.newest, stop, board)
    if loaded is None:
        return None
    resumed = _read(loaded, heavy())
    board.pin(resumed.as_status(board.status))
    if resumed.finished is not None:
        log.info("the job has finished already", extra={"fields": {"checkpoint": resumed.name}})
    return resumed


def _read(loaded: Loaded, modules: _Heavy) -> Any:
    for sentence in loaded.passed_over:
        log.warning("a checkpoint was passed over", extra={"fields": {"why": sentence}})
    resumed = modules.resume.Resumed.read(loaded)
    log.info("resumed", extra={"fields": {"checkpoint": resumed.name, "steps": loaded.stored.manifest.steps}})
    return resumed


def _patiently(ask: Callable[[], T], stop: threading.Event, board: Board) -> T:
    """Asks storage again while it does not answer, for two minutes."""
    until = time.monotonic() + STORAGE_PATIENCE_SECONDS
    wait = 0.2
    while True:
        try:
            return ask()
        except StorageUnavailable as error:
            if time.monotonic() > until:
                raise
            board.pin(board.status.model_copy(update={"message": f"waits for storage: {error}"}))
        pause(stop, wait)
        wait = min(2 * wait, 5.0)


def _spaces(channel: LearnerChannel, stop: threading.Event, board: Board) -> EnvironmentSpec:
    """Waits for the first worker that has built the environment."""
    while (found := channel.environment_spec()) is None:
        board.beat()
        pause(stop, LOOK_FOR_WORKERS_SECONDS)
    return found


def _serve_until_heard(stop: threading.Event, board: Board) -> None:
    """A finished trainer goes on saying so until the operator, which has heard it, takes it away. One that
    nobody asks ends: then its last words must be enough.
    """
    finished = time.monotonic()
    while not stop.wait(LOOK_FOR_THE_END_SECONDS):
        board.beat()
        if min(board.seconds_unasked, time.monotonic() - finished) >= UNHEARD_SECONDS:
            log.info("ends, for nobody asks how it went")
            break


def _last_status(status: TrainerStatus) -> str:
    """A status as last words, without what is too long for them."""
    status = status.model_copy(update={"pools": {}})
    bare = status.model_copy(update={"progress": status.progress.model_copy(update={"curve": []})})
    texts = [one.model_dump_json(by_alias=True, exclude_none=True) for one in (status, bare)]
    return next((text for text in texts if fits(text)), texts[-1])


def _lineage(settings: Settings, parent: str | None) -> Lineage:
    config = settings.config
    return Lineage(
        namespace=config.namespace,
        job=config.name,
        uid=config.uid,
        attempt=settings.attempt,
        parent=f"sha256:{parent}" if parent else None,
        config=f"sha256:{hashlib.sha256(config.model_dump_json(by_alias=True).encode()).hexdigest()}",
        image=settings.image,
        versions={"ratchet": __version__, "torch": version("torch"), "numpy": version("numpy")},
    )


if __name__ == "__main__":
    main()
