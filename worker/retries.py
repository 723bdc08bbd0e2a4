"""What follows a failed attempt: another one or the end. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.errors import GroupFault, Interrupted, JobError, OutOfMemory, SpoolFailed

GROUP_FAULTS = 3  # of one job: then it is the job that kills ranks, not chance
SPOOL_FAULTS = 10  # a quarter of an hour of full disks: then the job may be what fits nowhere
WAIT_S, MOST_S = 5.0, 300.0


@dataclass(frozen=True)
class Again:
    counted: bool = True
    delay_s: float = 0.0


@dataclass(frozen=True)
class GiveUp:
    """dead: a fault, not the caller, ended the job: list it for an operator."""

    dead: bool


def decide(error: JobError, earlier: Sequence[dict[str, Any]]) -> Again | GiveUp:
    """earlier: the counted errors of earlier attempts."""
    codes = [e["code"] for e in earlier]
    full = codes.count(SpoolFailed.code)
    if isinstance(error, Interrupted):
        return Again(counted=False)
    if isinstance(error, SpoolFailed):
        if full + 1 == SPOOL_FAULTS:
            return GiveUp(dead=True)
        return Again(delay_s=min(MOST_S, WAIT_S * 2**full))
    if isinstance(error, OutOfMemory):
        return GiveUp(dead=True) if OutOfMemory.code in codes else Again()
    if isinstance(error, GroupFault):
        return Again() if len(codes) - full + 1 < GROUP_FAULTS else GiveUp(dead=True)
    return GiveUp(dead=error.code == "internal")
