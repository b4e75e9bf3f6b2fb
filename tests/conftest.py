"""Fixtures that more than one folder of tests uses."""

from redisserver import redis, redis_server

__all__ = ["redis", "redis_server"]
