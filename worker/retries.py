"""What follows a failed attempt: another one or the end. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.errors import GroupFault, Interrupted, JobError, OutOfMemory, SpoolFull

GROUP_FAULTS = 3  # of one job: then it is the job that kills ranks, not chance


@dataclass(frozen=True)
class Again:
    counted: bool = True


@dataclass(frozen=True)
class GiveUp:
    """dead: a fault, not the caller, ended the job: list it for an operator."""

    dead: bool


def decide(error: JobError, earlier: Sequence[dict[str, Any]]) -> Again | GiveUp:
    """earlier: the counted errors of earlier attempts."""
    codes = [e["code"] for e in earlier]
    if isinstance(error, Interrupted | SpoolFull):
        return Again(counted=False)
    if isinstance(error, OutOfMemory):
        return GiveUp(dead=True) if OutOfMemory.code in codes else Again()
    if isinstance(error, GroupFault):
        return Again() if len(codes) + 1 < GROUP_FAULTS else GiveUp(dead=True)
    return GiveUp(dead=error.code == "internal")
