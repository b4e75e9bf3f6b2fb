"""The smallest job that a trainer can be started with, as its configuration says it."""

import json
import secrets
from pathlib import Path
from typing import Any


def job(endpoint: str = "http://127.0.0.1:1", **changes: Any) -> dict[str, Any]:
    return {
        "namespace": "default",
        "name": "cartpole",
        "uid": secrets.token_hex(4),
        "environment": {"id": "CartPole-v1"},
        "algorithm": {},
        "evaluation": {},
        "stop": {"maxSteps": 1000},
        "checkpoint": {"s3": {"bucket": "ratchet", "endpoint": endpoint}},
        "fragmentsPerBatch": 1,
        **changes,
    }


def configuration(folder: Path, value: Any) -> dict[str, str]:
    (folder / "job.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return {"RATCHET_CONFIG": str(folder / "job.json")}
