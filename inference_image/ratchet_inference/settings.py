"""Everything that can be chosen, from flags and from the environment: `--max-batch` is RATCHET_MAX_BATCH."""

import argparse
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from ratchet.api.v1alpha1.training import S3
from ratchet_inference.decisions.rewards import LARGEST_REWARD


def _choice(default: Any, help_: str) -> Any:
    return field(default=default, metadata={"help": help_})


_COUNTS = (
    "max_batch",
    "max_observations",
    "canary_requests",
    "mirror_requests",
    "max_body_bytes",
    "max_connections",
    "max_sessions",
)
_AMOUNTS = (
    "response_cache",
    "retry_memory",
    "fallback_ms",
    "max_delay_ms",
    "connection_seconds",
    "drain_delay_seconds",
    "drain_seconds",
)
_DURATIONS = ("canary_ms", "session_seconds", "request_seconds", "idle_seconds", "reward_seconds")


class WrongSettings(ValueError):  # noqa: N818 - settings that are wrong
    """A setting that cannot work; the message says what to write instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Read once, when the process starts."""

    policy: str = _choice("", "folder or s3:// URI of the policy to serve")
    digest: str = _choice("", "SHA-256 that the policy must have")
    name: str = _choice("policy", "of the model in the Open Inference Protocol")
    cache: str = _choice("/tmp/ratchet-policies", "folder where policies from S3 are kept")  # noqa: S108
    host: str = _choice("0.0.0.0", "address to listen on")  # noqa: S104 - a server in a container
    port: int = _choice(8080, "to listen on; 0 takes a free one")
    operations_port: int = _choice(
        0, "plain HTTP for health, statistics and orders alone, for probes where clients need a certificate"
    )
    deterministic: bool = _choice(False, "take the most likely action where a request does not say")
    response_cache: int = _choice(0, "answers to deterministic requests that are kept")
    max_batch: int = _choice(256, "observations that the policy is asked at once")
    max_observations: int = _choice(4096, "in one request")
    max_delay_ms: float = _choice(100.0, "that a request may wait before requests are refused with 503")
    fallback_ms: float = _choice(
        50.0, "from a request's last byte in which a policy that fails may be replaced by the one before"
    )
    route_file: str = _choice("", "JSON of the route to start with; PUT /v1/route changes it")
    canary_ms: float = _choice(30.0, "for the canary to answer before this server does")
    canary_requests: int = _choice(128, "that may wait for the canary at once")
    mirror_requests: int = _choice(32, "copies that may be on their way to the canary at once")
    retry_memory: int = _choice(
        8 << 20, "bytes of answers that are kept for requests that come again; 0 keeps none"
    )
    max_body_bytes: int = _choice(8 << 20, "of one request")
    max_connections: int = _choice(20_000, "open at once")
    max_sessions: int = _choice(65_536, "episodes that are remembered at once")
    session_seconds: float = _choice(900.0, "without a step, after which an episode is forgotten")
    request_seconds: float = _choice(10.0, "from a request's first byte to its last")
    idle_seconds: float = _choice(120.0, "between two requests of a connection")
    connection_seconds: float = _choice(
        30.0, "after which a connection ends between two episodes, so that the next may reach another server"
    )
    drain_delay_seconds: float = _choice(5.0, "after SIGTERM in which new requests are still answered")
    drain_seconds: float = _choice(20.0, "after that for open connections to end")
    rewards: bool = _choice(True, "take rewards, and report returns of episodes by policy")
    reward_seconds: float = _choice(60.0, "that a decision or an episode waits for its reward")
    default_reward: str = _choice("", "number for a reward that never came; without it there is none")
    decisions: str = _choice("", "folder or s3://bucket/prefix for the decision log; without it none is kept")
    spool: str = _choice("/tmp/ratchet-decisions", "folder for the log until S3 has it")  # noqa: S108
    s3_endpoint: str = _choice("", "URL of an S3 server that is not AWS")
    s3_region: str = _choice("us-east-1", "of the bucket")
    token_file: str = _choice("", "file with the token that clients must send; without it none is needed")
    admin_token_file: str = _choice("", "file with the token for PUT /v1/policy and PUT /v1/route")
    tls_cert: str = _choice("", "PEM file of the server's certificates; serves HTTPS")
    tls_key: str = _choice("", "PEM file of its key")
    tls_client_ca: str = _choice("", "PEM file of who signs clients' certificates; asks each client for one")
    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, arguments: Sequence[str], environment: Mapping[str, str]) -> Self:
        """Flags, else variables, else defaults.

        Raises:
            WrongSettings: one of them cannot work.
            SystemExit: a flag is unknown, or `--help` was asked for.

        """
        parser = argparse.ArgumentParser(
            "ratchet-inference", description="Serves a policy's actions over HTTP."
        )
        chosen: list[Any] = [one for one in fields(cls) if "help" in one.metadata]
        for one in chosen:
            flag = "--" + one.name.replace("_", "-")
            words = f"{one.metadata['help']} ({one.default!r})"
            if isinstance(one.default, bool):
                parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=words)
            else:
                parser.add_argument(flag, type=_kind(one.default), metavar="X", default=None, help=words)
        given = vars(parser.parse_args(arguments))
        values: dict[str, Any] = {}
        for one in chosen:
            value = given[one.name]
            variable = "RATCHET_" + one.name.upper()
            text = environment.get(variable, "")
            # Kubernetes writes such a RATCHET_PORT into pods beside a Service called `ratchet`.
            if value is None and text and not text.startswith("tcp://"):
                value = _convert(variable, text, _kind(one.default))
            if value is not None:
                values[one.name] = value
        for which in ("token", "admin_token"):
            file = values.get(f"{which}_file")
            if file:
                values[which] = _token(Path(file))
        settings = cls(**values)
        settings._check_ranges()
        if settings.tls_client_ca and not settings.tls_cert:
            raise WrongSettings("--tls-client-ca needs --tls-cert and --tls-key too")
        if bool(settings.tls_cert) != bool(settings.tls_key):
            raise WrongSettings("--tls-cert and --tls-key go together")
        return settings

    def _check_ranges(self) -> None:
        for names, least in ((_COUNTS, 1), (_AMOUNTS, 0)):
            for name in names:
                value = getattr(self, name)
                if not least <= value < float("inf"):
                    flag = "--" + name.replace("_", "-")
                    raise WrongSettings(f"{flag} is {value:g}: write a number from {least}")
        for name in _DURATIONS:
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                flag = "--" + name.replace("_", "-")
                raise WrongSettings(f"{flag} is {value:g}: write a number larger than 0")
        for name in ("port", "operations_port"):
            if not 0 <= getattr(self, name) <= 65_535:
                flag = "--" + name.replace("_", "-")
                raise WrongSettings(f"{flag} is {getattr(self, name)}: write a port from 0 to 65535")
        if self.default is not None and not abs(self.default) <= LARGEST_REWARD:
            raise WrongSettings(
                f"--default-reward is {self.default_reward}: write a number from -1e100 to 1e100"
            )

    @property
    def default(self) -> float | None:
        """What stands for a reward that never came."""
        return _convert("--default-reward", self.default_reward, float) if self.default_reward else None

    def bucket(self, place: str) -> S3 | None:
        """The bucket and prefix of an s3:// URI, None of a folder.

        Raises:
            WrongSettings: it names no bucket.

        """
        if not place.startswith("s3://"):
            return None
        name, _, prefix = place.removeprefix("s3://").partition("/")
        try:
            return S3(
                bucket=name,
                prefix=prefix.strip("/"),
                endpoint=self.s3_endpoint or None,
                region=self.s3_region,
            )
        except ValidationError as error:
            raise WrongSettings(f"{place} is not s3://bucket/prefix: {error.errors()[0]['msg']}") from error

    def tls(self) -> ssl.SSLContext | None:
        """What HTTPS needs, None for HTTP.

        Raises:
            WrongSettings: a file cannot be read.

        """
        if not self.tls_cert:
            return None
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.tls_cert, self.tls_key)
            if self.tls_client_ca:
                context.load_verify_locations(self.tls_client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:
            raise WrongSettings(f"the files of --tls-… are of no use: {error}") from error
        context.set_alpn_protocols(["http/1.1"])
        return context

    def tls_of_clients(self) -> ssl.SSLContext | None:
        """What asking a canary over HTTPS needs where this server has a certificate; None for the default.

        Raises:
            WrongSettings: a file cannot be read.

        """
        if not self.tls_cert:
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_client_ca or None)
            context.load_cert_chain(self.tls_cert, self.tls_key)
        except OSError as error:
            raise WrongSettings(f"the files of --tls-… are of no use: {error}") from error
        return context


def _kind(default: object) -> Any:
    return type(default)


def _convert(variable: str, text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() in ("1", "true", "yes"):
            return True
        if text.lower() in ("0", "false", "no"):
            return False
        raise WrongSettings(f"{variable} is {text!r}: write true or false")
    try:
        return kind(text)
    except ValueError as error:
        raise WrongSettings(f"{variable} is {text!r}: it must be a number") from error


def _token(file: Path) -> str:
    try:
        token = file.read_text().strip()
    except OSError as error:
        raise WrongSettings(f"the token file {file} can't be read: {error.strerror}") from error
    if not token:
        raise WrongSettings(f"the token file {file} is empty")
    return token
