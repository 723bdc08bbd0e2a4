"""From the question and the model's shape to a plan. Pure; knows no GPU."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

from jobs.catalog import ModelSpec
from jobs.errors import InvalidInput
from jobs.request import JobRequest, Parallel, items
from worker.plan import Plan, divisors

# An image of up to a megapixel gains less from a split than it costs: deal whole images instead.
SPLIT_ABOVE_PIXELS = 1024 * 1024
# Speed-up of u ranks by Ulysses as u ** this: 1.8x on 2 H200s, benchmarks/README.md. A ring sends
# more for the same: only beyond the heads.
ULYSSES_GAIN, RING_GAIN = 0.9, 0.85
# Two ranks on the two passes of guidance: a swap a step. 1.98x on 2 H200s, docs/decisions.md.
CFG_GAIN = 1.96


@dataclass(frozen=True)
class Choice:
    """What a job could do with a lane of `width` ranks. duration: in times of one item on one."""

    width: int
    plan: Plan
    duration: float
    reason: str


def choices(
    spec: ModelSpec, request: JobRequest, ranks: int, least_memory: bool = False
) -> list[Choice]:
    """One for each width of a lane in a group of `ranks` ranks that could run the job.

    least_memory: an earlier attempt ran out of memory; all ranks, the fewest tokens on each.
    Raises: InvalidInput, where an explicit plan does not fit the group.
    """
    if isinstance(request.parallel, Parallel):
        return [_explicit(request, ranks)]
    widths = [ranks] if least_memory else divisors(ranks)
    return [choose(spec, request, width, least_memory) for width in widths]


def _explicit(request: JobRequest, ranks: int) -> Choice:
    assert isinstance(request.parallel, Parallel)
    if refusal := request.parallel.refused_by(ranks):
        raise InvalidInput(refusal)
    plan = Plan.of(request.parallel)
    width = next(w for w in divisors(ranks) if w >= plan.width and w % plan.replica_width == 0)
    return Choice(width, plan, _duration(plan, len(items(request))), "explicit")


def choose(spec: ModelSpec, request: JobRequest, ranks: int, least_memory: bool = False) -> Choice:
    """The best plan for a lane of `ranks` ranks."""
    asked, count = request.input, len(items(request))
    replicas = list(_replicas(spec, request, ranks))
    if least_memory:
        replica = max(replicas, key=lambda r: (r.ulysses * r.ring, r.ulysses, r.cfg))
        reason = "least memory"
    elif asked.frames == 1 and asked.width * asked.height <= SPLIT_ABOVE_PIXELS:
        replica, reason = Plan(), "small images are dealt whole"
    else:
        replica = min(replicas, key=lambda r: _duration(_dealt(r, ranks, count), count))
        reason = f"shortest for {count} outputs"
    plan = _dealt(replica, ranks, count)
    return Choice(ranks, plan, _duration(plan, count), reason)


def _replicas(spec: ModelSpec, request: JobRequest, ranks: int) -> Iterator[Plan]:
    """Every way in which some of the ranks could compute one item."""
    asked = request.input
    tokens = spec.shape.token_counts(asked.width, asked.height, asked.frames)
    for cfg in (1, 2) if spec.guides(asked.guidance_scale) else (1,):
        for degree in divisors(ranks):
            for ulysses in divisors(degree):
                replica = Plan(cfg=cfg, ulysses=ulysses, ring=degree // ulysses)
                if ranks % replica.replica_width == 0 and not spec.shape.refuses(
                    replica.ulysses, replica.ring, tokens
                ):
                    yield replica


def _dealt(replica: Plan, ranks: int, count: int) -> Plan:
    return replace(replica, data=min(ranks // replica.replica_width, count))


def _duration(plan: Plan, count: int) -> float:
    gain: float = CFG_GAIN ** (plan.cfg - 1)
    gain *= plan.ulysses**ULYSSES_GAIN * plan.ring**RING_GAIN
    return ceil(count / plan.data) / gain
