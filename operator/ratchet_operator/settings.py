"""What the operator reads from its environment, once, into one frozen object."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Installation:
    """What every pod that the operator makes has in common."""

    trainer_image: str = "ratchet-trainer:dev"
    rollout_image: str = "ratchet-rollout:dev"
    inference_image: str = "ratchet-inference:dev"
    redis_image: str = "redis:7-alpine"
    image_pull_policy: str = "IfNotPresent"
    network_policies: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the process; `from_environ` documents where each comes from."""

    installation: Installation = Installation()
    namespaces: tuple[str, ...] = ()
    nodes_visible: bool = True
    pod_namespace: str = "default"
    pod_name: str = "ratchet-operator"
    pod_ip: str = ""
    waker_ports: range = range(20_000, 21_000)
    admin_key_file: str = ""
    status_interval: float = 2.0
    workers: int = 8
    writes_per_second: float = 300.0
    resync_seconds: float = 300.0
    port: int = 8080
    log_level: str = "INFO"

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read the environment.

        Raises:
            ValueError: a variable can't be read; the message names it and says what to write.

        """

        def text(name: str, default: str) -> str:
            return environ.get(name, "").strip() or default

        def number(name: str, default: float, least: float) -> float:
            raw = text(name, str(default))
            try:
                value = float(raw)
            except ValueError:
                value = least - 1
            if value < least:
                raise ValueError(f"{name}={raw!r}: write a number of {least:g} or more")
            return value

        def flag(name: str, default: bool) -> bool:
            raw = text(name, str(default)).lower()
            if raw not in ("true", "false"):
                raise ValueError(f"{name}={raw!r}: write true or false")
            return raw == "true"

        def ports(name: str, default: str) -> range:
            raw = text(name, default)
            first, _, last = raw.partition("-")
            if first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) < 65_536:
                return range(int(first), int(last) + 1)
            raise ValueError(f"{name}={raw!r}: write the first and the last port, as {default}")

        images = Installation()
        return cls(
            installation=Installation(
                trainer_image=text("RATCHET_TRAINER_IMAGE", images.trainer_image),
                rollout_image=text("RATCHET_ROLLOUT_IMAGE", images.rollout_image),
                inference_image=text("RATCHET_INFERENCE_IMAGE", images.inference_image),
                redis_image=text("RATCHET_REDIS_IMAGE", images.redis_image),
                image_pull_policy=text("RATCHET_IMAGE_PULL_POLICY", images.image_pull_policy),
                network_policies=flag("RATCHET_NETWORK_POLICIES", images.network_policies),
            ),
            namespaces=tuple(
                sorted({part.strip() for part in text("RATCHET_NAMESPACES", "").split(",") if part.strip()})
            ),
            nodes_visible=flag("RATCHET_NODES_VISIBLE", True),
            pod_namespace=text("POD_NAMESPACE", "default"),
            pod_name=text("POD_NAME", socket.gethostname()),
            pod_ip=text("POD_IP", ""),
            waker_ports=ports("RATCHET_WAKER_PORTS", "20000-20999"),
            admin_key_file=text("RATCHET_ADMIN_KEY_FILE", ""),
            status_interval=number("RATCHET_STATUS_INTERVAL", 2, 0.1),
            workers=int(number("RATCHET_WORKERS", 8, 1)),
            writes_per_second=number("RATCHET_WRITES_PER_SECOND", 300, 1),
            resync_seconds=number("RATCHET_RESYNC_SECONDS", 300, 1),
            port=int(number("RATCHET_PORT", 8080, 0)),
            log_level=text("RATCHET_LOG_LEVEL", "INFO").upper(),
        )
