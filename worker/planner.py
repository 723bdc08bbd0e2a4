"""choose_plan(): from the question and the model's shape to a plan. Pure; knows no GPU."""

from dataclasses import replace
from math import ceil

from jobs.catalog import ModelSpec
from jobs.errors import InvalidInput
from jobs.request import JobRequest, Parallel, items
from worker.plan import Plan

# An image of up to a megapixel gains less from a split than it costs: deal whole images instead.
SPLIT_ABOVE_PIXELS = 1024 * 1024
# Speed-up of u ranks by Ulysses as u ** this: 1.8x on 2 H200s, benchmarks/README.md.
ULYSSES_GAIN = 0.9
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
    degrees = [
        degree
        for degree in range(1, ranks + 1)
        if ranks % degree == 0 and spec.shape.refuses(degree, tokens) is None
    ]
    if least_memory:
        widest = degrees[-1]
        cfg = 2 if spec.guides(asked.guidance_scale) and ranks % (2 * widest) == 0 else 1
        data = min(ranks // (cfg * widest), count)
        return Plan(data=data, cfg=cfg, ulysses=widest), "least memory"
    if asked.frames == 1 and asked.width * asked.height <= SPLIT_ABOVE_PIXELS:
        return Plan(data=min(ranks, count)), "small images are dealt whole"
    replicas = [
        Plan(cfg=cfg, ulysses=degree)
        for cfg in ((1, 2) if spec.guides(asked.guidance_scale) else (1,))
        for degree in degrees
        if ranks % (cfg * degree) == 0
    ]

    def duration(replica: Plan) -> float:
        gain: float = CFG_GAIN ** (replica.cfg - 1) * replica.ulysses**ULYSSES_GAIN
        return ceil(count / (ranks // replica.replica_width)) / gain

    best = min(replicas, key=duration)
    data = min(ranks // best.replica_width, count)
    return replace(best, data=data), f"shortest for {count} outputs"
