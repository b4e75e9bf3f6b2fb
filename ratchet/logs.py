"""One JSON object per line, so that any collector can read it. Every process of Ratchet logs like this."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "fields"}


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, and whatever was passed as `extra` or as `extra={"fields": {…}}`.

    `fields` is for names that `extra` refuses, such as `name` or `args`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
            **{key: value for key, value in vars(record).items() if key not in _PLAIN},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def write_json_lines(stream: TextIO | None = None, level: int | str = logging.INFO) -> None:
    """Sends every log record of the process to `stream`, stdout by default."""
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # At DEBUG it writes down what it signs, a session token included.
    logging.getLogger("botocore").setLevel(logging.INFO)
    logging.captureWarnings(True)
