"""The ConfigMap: the resolved job that trainer and workers read, and the job's ledger beside it."""

import json
from collections.abc import Sequence

from ratchet_operator.build.context import JobContext
from ratchet_operator.kinds import CONFIG_MAP, Json
from ratchet_operator.ledger import LEDGER_ANNOTATION, Ledger

CONFIG_KEY, KEPT_KEY = "job.json", "kept.json"


def config_map(context: JobContext, ledger: Ledger, kept: Sequence[str]) -> Json:
    """`<job>-config`; it outlives the end of training, and goes with the job.

    Args:
        context: the job.
        ledger: beside the files.
        kept: names of the checkpoints that its trainer must not remove, sorted.

    """
    obj = context.child(CONFIG_MAP, context.config_name, "config")
    obj["metadata"]["annotations"] = {LEDGER_ANNOTATION: ledger.to_annotation()}
    obj["data"] = {
        CONFIG_KEY: context.config.model_dump_json(by_alias=True, exclude_none=True),
        KEPT_KEY: json.dumps(kept),
    }
    return obj
