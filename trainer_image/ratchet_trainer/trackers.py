"""Where figures go besides Prometheus: TensorBoard files in the job's S3 prefix, W&B or MLflow on request."""

import tempfile
from pathlib import Path
from typing import Any, Protocol

from ratchet.api.v1alpha1 import TrainingConfig
from ratchet.configuration import InvalidConfiguration


class Tracker(Protocol):
    """Takes figures at a step count."""

    def log(self, figures: dict[str, float], steps: int) -> None:
        """By name, at an x of environment steps."""
        ...


class TensorBoard:
    """Event files in a folder of their own; `files` hands them to the checkpoint writer for upload."""

    def __init__(self, run: str) -> None:
        # Its own event writer is all that is needed; the usual one reaches for TensorFlow.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        events: Any = event_pb2
        summaries: Any = summary_pb2
        self._event = events.Event
        self._summary = summaries.Summary
        self._folder = Path(tempfile.mkdtemp(prefix="tensorboard-"))
        self._run = run
        self._writer: Any = EventFileWriter(str(self._folder))

    def log(self, figures: dict[str, float], steps: int) -> None:
        """One event with a scalar per figure."""
        import time

        values = [self._summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._writer.add_event(
            self._event(wall_time=time.time(), step=steps, summary=self._summary(value=values))
        )

    def files(self) -> dict[str, bytes]:
        """Content by S3 key below the job's prefix, as of now."""
        self._writer.flush()
        return {
            f"tensorboard/{self._run}/{file.name}": file.read_bytes()
            for file in sorted(self._folder.iterdir())
        }


class WeightsAndBiases:
    """A run of Weights & Biases, named after the job; credentials by WANDB_API_KEY or its own files."""

    def __init__(self, config: TrainingConfig) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        library: Any = wandb  # pyright: ignore[reportUnknownVariableType]
        self._run: Any = library.init(
            project=config.namespace, name=config.name, id=config.uid, resume="allow", config=config.to_wire()
        )

    def log(self, figures: dict[str, float], steps: int) -> None:
        """One row."""
        self._run.log(figures, step=steps)


class MLflow:
    """A run of MLflow, named after the job; the server is in MLFLOW_TRACKING_URI."""

    def __init__(self, config: TrainingConfig) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        self._library: Any = mlflow
        self._library.set_experiment(config.namespace)
        self._library.start_run(run_name=config.name, tags={"ratchet.dev/uid": config.uid})

    def log(self, figures: dict[str, float], steps: int) -> None:
        """One batch."""
        self._library.log_metrics(figures, step=steps)


def tracker(name: str | None, config: TrainingConfig) -> Tracker | None:
    """The tracker that RATCHET_TRACKER names.

    Raises:
        InvalidConfiguration: there is none of that name, or its package is not in the image.

    """
    kinds: dict[str, type[WeightsAndBiases] | type[MLflow]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}
    if name is None:
        return None
    if name not in kinds:
        raise InvalidConfiguration(f"RATCHET_TRACKER is {name!r}: write one of {', '.join(sorted(kinds))}")
    try:
        return kinds[name](config)
    except ImportError as error:
        raise InvalidConfiguration(
            f"RATCHET_TRACKER is {name!r}, and its package is not in this image: "
            f"install ratchet-trainer[{name}]"
        ) from error
