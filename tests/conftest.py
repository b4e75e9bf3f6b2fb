"""Fixtures that more than one folder of tests uses."""

from collections.abc import Iterator

import pytest
from clients import make_client
from hypothesis import settings
from redisserver import redis, redis_server
from s3server import S3Server, s3_server

# How long an example takes says something of the machine, not of the code.
settings.register_profile("ratchet", deadline=None)
settings.load_profile("ratchet")

__all__ = ["make_client", "redis", "redis_server", "s3"]


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for the whole run, with the bucket `ratchet`; each test takes a prefix of its own."""
    with s3_server(tmp_path_factory.mktemp("s3") / "server") as server:
        server.client().create_bucket(Bucket="ratchet")
        yield server
