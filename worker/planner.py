"""choose_plan(): from the question and the model's shape to a plan. Pure; knows no GPU."""

from dataclasses import replace
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


def choose_plan(
    spec: ModelSpec, request: JobRequest, ranks: int, least_memory: bool = False
) -> tuple[Plan, str]:
    """The plan for a lane of `ranks` ranks, and the reason in a few words.

    least_memory: an earlier attempt ran out of memory; take the fewest tokens a rank.
    Raises: InvalidInput, where an explicit plan does not fit the lane.
    """
    if isinstance(request.parallel, Parallel):
        if refusal := request.parallel.refused_by(ranks):
            raise InvalidInput(refusal)
        return Plan.of(request.parallel), "explicit"
    asked, count = request.input, len(items(request))
    tokens = spec.shape.token_counts(asked.width, asked.height, asked.frames)
    splits = [
        Plan(ulysses=ulysses, ring=degree // ulysses)
        for degree in divisors(ranks)
        for ulysses in divisors(degree)
        if spec.shape.refuses(ulysses, degree // ulysses, tokens) is None
    ]
    passes = (1, 2) if spec.guides(asked.guidance_scale) else (1,)
    replicas = [
        replace(split, cfg=cfg)
        for cfg in passes
        for split in splits
        if ranks % (cfg * split.replica_width) == 0
    ]
    if least_memory:
        best = max(replicas, key=lambda r: (r.ulysses * r.ring, r.ulysses, r.cfg))
        return replace(best, data=min(ranks // best.replica_width, count)), "least memory"
    if asked.frames == 1 and asked.width * asked.height <= SPLIT_ABOVE_PIXELS:
        return Plan(data=min(ranks, count)), "small images are dealt whole"

    def duration(replica: Plan) -> float:
        gain: float = CFG_GAIN ** (replica.cfg - 1)
        gain *= replica.ulysses**ULYSSES_GAIN * replica.ring**RING_GAIN
        return ceil(count / (ranks // replica.replica_width)) / gain

    best = min(replicas, key=duration)
    data = min(ranks // best.replica_width, count)
    return replace(best, data=data), f"shortest for {count} outputs"
