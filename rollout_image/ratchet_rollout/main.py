"""`ratchet-rollout`: one worker process, configured by a file and four variables.

RATCHET_CONFIG names the job's configuration, RATCHET_POOL the worker's pool, RATCHET_REDIS_URL_FILE (or
REDIS_URL) says where Redis is, RATCHET_TERMINATION_LOG where the last words go.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from types import FrameType

# Small matrices gain nothing from threads, and workers share nodes. numpy reads these when it is imported.
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

from ratchet.api.v1alpha1 import ExitCode  # noqa: E402 - after the variables above
from ratchet.configuration import InvalidConfiguration, read_configuration  # noqa: E402
from ratchet.experience import (  # noqa: E402
    ConnectionSettings,
    InvalidRedisUrl,
    Patience,
    RedisUnreachable,
    WorkerChannel,
    connect,
)
from ratchet.lastwords import leave  # noqa: E402
from ratchet.logs import write_json_lines  # noqa: E402
from ratchet_rollout.errors import ConfigError, Interrupted  # noqa: E402
from ratchet_rollout.worker import Identity, Shutdown, Worker  # noqa: E402

logger = logging.getLogger(__name__)

# 128 + SIGTERM, as if the signal had not been caught. Never 0: a worker's work is not done before its job's.
ASKED_TO_END = 143


def main() -> None:
    """Runs one worker and exits with a code of `ExitCode`, or 143 when asked to end."""
    write_json_lines()
    shutdown = Shutdown()

    def end(_signal: int, _frame: FrameType | None) -> None:
        shutdown.request()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    sys.exit(run(os.environ, shutdown))


def run(environment: Mapping[str, str], shutdown: Shutdown) -> int:
    """Works until asked to end; the exit code."""
    try:
        _work(environment, shutdown)
    except Interrupted:
        logger.info("ended in the midst of work; the learner asks for it again")
    except (ConfigError, InvalidConfiguration, InvalidRedisUrl) as error:
        return leave(environment, ExitCode.CONFIG, str(error), logger)
    except RedisUnreachable as error:
        return leave(environment, ExitCode.REDIS, str(error), logger)
    except Exception as error:
        logger.exception("failed")
        return leave(environment, 1, f"{type(error).__name__}: {error}", logger)
    return ASKED_TO_END


def _work(environment: Mapping[str, str], shutdown: Shutdown) -> None:
    config = read_configuration(environment)
    identity = Identity(environment.get("RATCHET_POOL", config.name), socket.gethostname())
    redis = connect(ConnectionSettings.from_environment(environment))
    channel = WorkerChannel(redis, config.key_prefix, Patience(total=300, sleep=shutdown.sleep))
    worker = Worker(config, identity, channel, shutdown)
    fields = {"worker": identity.worker, "incarnation": identity.incarnation, "job": config.name}
    logger.info("started", extra={"fields": fields})
    try:
        worker.run()
    finally:
        worker.close()
        redis.close()
    logger.info("ended as asked")
