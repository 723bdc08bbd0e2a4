"""What follows a failed attempt: another one or the end. Pure, but for the dice."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.errors import (
    GroupFault,
    Internal,
    Interrupted,
    JobError,
    ModelUnavailable,
    OutOfMemory,
    Poisoned,
    SpoolFailed,
)

GROUP_FAULTS = 3  # of one job: then it is the job that kills ranks, not chance
SPOOL_FAULTS = 10  # a quarter of an hour of full disks: then the job may be what fits nowhere
HUB_FAULTS = 5
WAIT_S, MOST_S = 5.0, 300.0


@dataclass(frozen=True)
class Again:
    counted: bool = True
    delay_s: float = 0.0


@dataclass(frozen=True)
class GiveUp:
    """dead: a fault, not the caller, ended the job: list it for an operator."""

    dead: bool


def decide(
    error: JobError, earlier: Sequence[dict[str, Any]], chance: float | None = None
) -> Again | GiveUp:
    """earlier: the counted errors of earlier attempts. chance: from 0 to 1, so that jobs which
    failed together are not tried again together; by default it is thrown."""
    codes = [e["code"] for e in earlier]
    full = codes.count(SpoolFailed.code)
    if isinstance(error, Interrupted):
        return Again(counted=False)
    if isinstance(error, SpoolFailed):
        if full + 1 == SPOOL_FAULTS:
            return GiveUp(dead=True)
        return Again(delay_s=min(MOST_S, WAIT_S * 2**full))
    away = codes.count(ModelUnavailable.code)
    if isinstance(error, ModelUnavailable):
        if away + 1 == HUB_FAULTS:
            return GiveUp(dead=True)
        part = random.random() if chance is None else chance
        return Again(delay_s=part * min(MOST_S, WAIT_S * 2**away))
    if isinstance(error, OutOfMemory):
        return GiveUp(dead=True) if OutOfMemory.code in codes else Again()
    if isinstance(error, GroupFault):
        return Again() if len(codes) - full - away + 1 < GROUP_FAULTS else GiveUp(dead=True)
    return GiveUp(dead=isinstance(error, (Internal, Poisoned)))
