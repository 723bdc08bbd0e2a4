"""What follows a failed attempt: another one or the end. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.errors import GroupFault, Interrupted, JobError, OutOfMemory, StorageFailed

GROUP_FAULTS = 3  # of one job: then it is the job that kills ranks, not chance


@dataclass(frozen=True)
class Again:
    delay_s: float = 0
    counted: bool = True


@dataclass(frozen=True)
class GiveUp:
    """dead: a fault, not the caller, ended the job: list it for an operator."""

    dead: bool


def decide(
    error: JobError, earlier: Sequence[dict[str, Any]], max_tries: int, chance: float
) -> Again | GiveUp:
    """earlier: the counted errors of earlier attempts. chance: from [0, 1), spreads the delays."""
    codes = [e["code"] for e in earlier]
    if isinstance(error, Interrupted):
        return Again(counted=False)
    if isinstance(error, OutOfMemory):
        return GiveUp(dead=True) if OutOfMemory.code in codes else Again()
    if isinstance(error, GroupFault):
        return Again() if len(codes) + 1 < GROUP_FAULTS else GiveUp(dead=True)
    if isinstance(error, StorageFailed):
        delay = chance * min(300, 5 * 2 ** len(codes))
        return Again(delay) if len(codes) + 1 < max_tries else GiveUp(dead=True)
    return GiveUp(dead=error.code == "internal")
