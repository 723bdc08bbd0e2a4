"""The places of what holds a thread for long: streams, and requests that wait."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

from jobs.errors import TooManyStreams

_OPEN = "are open for long already."


class Places:
    """As many as there are must stay below gunicorn's threads: the rest answer everything else.

    share: of one tenant, at most, so that he alone can't have all the others refused.
    """

    def __init__(self, most: int, share: int) -> None:
        self._most, self._share = most, share
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    def take(self, tenant: str) -> None:
        """Until give_back(). Raises: TooManyStreams."""
        with self._lock:
            if self._taken.total() >= self._most:
                raise TooManyStreams(f"{self._most} requests {_OPEN}", limit=self._most)
            if self._taken[tenant] >= self._share:
                raise TooManyStreams(f"{self._share} of yours {_OPEN}", limit=self._share)
            self._taken[tenant] += 1

    def give_back(self, tenant: str) -> None:
        with self._lock:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]

    @contextlib.contextmanager
    def held(self, tenant: str) -> Iterator[None]:
        """Raises: TooManyStreams."""
        self.take(tenant)
        try:
            yield
        finally:
            self.give_back(tenant)
