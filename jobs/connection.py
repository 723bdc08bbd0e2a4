"""The connection to Redis, and one name for whatever keeps it from answering."""

import functools
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.errors import StoreUnavailable

_REFUSALS = re.compile(
    "MISCONF|NOREPLICAS|BUSY|MASTERDOWN|LOADING|READONLY|OOM|read.only replica|maxmemory"
    "|[Nn]o permission"
)
P = ParamSpec("P")
R = TypeVar("R")


def away(call: Callable[P, R]) -> Callable[P, R]:
    """Raises: StoreUnavailable, in place of what redis-py raises for a Redis that is away."""

    @functools.wraps(call)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise StoreUnavailable(f"Redis does not answer: {error}") from error
        except redis.ResponseError as error:
            if not _REFUSALS.search(str(error)):
                raise
            raise StoreUnavailable(f"Redis takes no writes: {error}") from error

    return guarded


def told_as_lost(call: Callable[P, R]) -> Callable[P, R]:
    """For celery: it comes back to a Redis that is away, and ends with any other error, also of one
    that takes no writes. Raises: redis.ConnectionError."""

    @functools.wraps(call)
    def asked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except redis.ResponseError as error:
            if not _REFUSALS.search(str(error)):
                raise
            raise redis.ConnectionError(f"Redis takes no writes: {error}") from error

    return asked


def connect(url: str) -> Any:
    """Answers or raises within about 2 s."""
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=2,
        socket_connect_timeout=1,
        # One stale connection of the pool is no outage; a second time-out would be too long.
        retry=Retry(NoBackoff(), 1, (redis.ConnectionError,)),
    )
