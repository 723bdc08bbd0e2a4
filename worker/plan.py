"""How one job is split over the ranks of its lane."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.request import Parallel


def divisors(number: int) -> list[int]:
    """From 1 upwards."""
    return [d for d in range(1, number + 1) if number % d == 0]


@dataclass(frozen=True)
class Plan:
    """data: independent replicas, each takes whole items. cfg: 2, where a replica's halves share
    the two passes of guidance. ulysses, ring: degrees of sequence parallelism, ulysses innermost.
    shard: a replica's ranks have each a share of the weights, not all of them. spread_encoder: the
    text encoder's layers lie on the devices of all these ranks, once; the rest on each.

    Raises: ValueError showing the whole plan, for a degree below 1.
    """

    data: int = 1
    cfg: int = 1
    ulysses: int = 1
    ring: int = 1
    shard: bool = False
    spread_encoder: bool = False

    def __post_init__(self) -> None:
        if min(self.data, self.cfg, self.ulysses, self.ring) < 1:
            raise ValueError(f"every degree must be at least 1: {self}")
        if self.shard and self.replica_width == 1:
            raise ValueError(f"one rank has no others to share weights with: {self}")
        if self.spread_encoder and (self.shard or self.width == 1):
            raise ValueError(f"an encoder is spread over several ranks, each with the rest: {self}")

    @classmethod
    def of(cls, parallel: Parallel) -> "Plan":
        return cls(**parallel.model_dump())

    @property
    def replica_width(self) -> int:
        """Ranks that compute one item together."""
        return self.cfg * self.ulysses * self.ring

    @property
    def width(self) -> int:
        return self.data * self.replica_width

    def replicas(self, lane: Sequence[int]) -> list[tuple[int, ...]]:
        """The lane's ranks, cut into the replicas that take one item each."""
        size = self.replica_width
        return [tuple(lane[i * size : (i + 1) * size]) for i in range(self.data)]
