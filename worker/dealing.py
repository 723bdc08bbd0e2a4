"""Whether the next item of a job should go to a slow replica, or wait for a faster one. Pure."""

import heapq
from collections.abc import Mapping


def worth_dealing(
    takes: float | None, others: Mapping[int, tuple[float | None, float]], items: int
) -> bool:
    """takes: seconds of an item on the free replica, None before its first. others: of each busy
    one the same, and for how long it has been at its item. items: how many wait.

    Not where the others would have done all of them before this replica has done one.
    """
    paces = [pace for pace, _ in others.values() if pace is not None]
    if takes is None or not others or len(paces) < len(others):
        return True
    free = [(max(0.0, pace - spent), pace) for pace, spent in others.values() if pace is not None]
    heapq.heapify(free)
    end = 0.0
    for _ in range(items):
        at, pace = heapq.heappop(free)
        end = max(end, at + pace)
        heapq.heappush(free, (at + pace, pace))
    return takes < end
