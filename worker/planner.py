"""From the question and the model's shape to a plan. Pure; knows no GPU."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, inf

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
# Of a rank's memory, for weights: the rest is what it computes in. Shared ones are gathered too.
WHOLE, SHARED = 0.85, 0.65


@dataclass(frozen=True)
class Choice:
    """What a job could do with a lane of `width` ranks. duration: in times of one item on one."""

    width: int
    plan: Plan
    duration: float
    reason: str


@dataclass(frozen=True)
class Room:
    """Bytes: a model's weights, its text encoders' part of them, and what the smallest rank has; 0
    for what nobody knows."""

    weights: int = 0
    encoders: int = 0
    memory: int = 0

    def placed(self, plan: Plan) -> Plan | None:
        """With its text encoder spread over the ranks where each can't have all weights, with all
        weights shared by a replica where that is too much; None where that is too."""
        if not plan.shard:
            if not plan.spread_encoder and self._fits(self.weights):
                return plan
            spread = self.weights - self.encoders + self.encoders / plan.width
            if plan.width > 1 and self._fits(spread):
                return replace(plan, spread_encoder=True)
        width = plan.replica_width
        if width == 1 or self.weights / width > SHARED * (self.memory or inf):
            return None
        return replace(plan, shard=True, spread_encoder=False)

    def _fits(self, weights: float) -> bool:
        return weights <= WHOLE * (self.memory or inf)

    def refusal(self, spec: ModelSpec, request: JobRequest) -> str:
        wide = (replica for ranks in range(1, 65) for replica in _replicas(spec, request, ranks))
        enough = min((r.replica_width for r in wide if self.placed(r)), default=None)
        would = f"{enough} ranks that share them would do" if enough else "no split of it would do"
        return (
            f"{spec.id} has {self.weights / 1e9:.3g} GB of weights and a rank here "
            f"{self.memory / 1e9:.3g} GB of memory: {would}."
        )


def choices(
    spec: ModelSpec,
    request: JobRequest,
    ranks: int,
    least_memory: bool = False,
    room: Room = Room(),
) -> list[Choice]:
    """One for each width of a lane in a group of `ranks` ranks that could run the job.

    least_memory: an earlier attempt ran out of memory; all ranks, the fewest tokens on each, shared
    weights. Raises: InvalidInput, where a plan, or the model, does not fit the group.
    """
    if request.input.loras:  # its encoder is not spread
        room = replace(room, encoders=0)
    if isinstance(request.parallel, Parallel):
        found: list[Choice | None] = [_explicit(spec, request, ranks, room)]
    else:
        widths = [ranks] if least_memory else divisors(ranks)
        found = [choose(spec, request, width, least_memory, room) for width in widths]
    possible = [choice for choice in found if choice is not None]
    if not possible:
        raise InvalidInput(room.refusal(spec, request))
    return possible


def _explicit(spec: ModelSpec, request: JobRequest, ranks: int, room: Room) -> Choice | None:
    assert isinstance(request.parallel, Parallel)
    if refusal := request.parallel.refused_by(ranks):
        raise InvalidInput(refusal)
    plan = room.placed(Plan.of(request.parallel))
    if plan is None:
        return None
    width = next(w for w in divisors(ranks) if w >= plan.width and w % plan.replica_width == 0)
    reason = "explicit" if plan == Plan.of(request.parallel) else f"explicit, {_shared(plan)}"
    return Choice(width, plan, _duration(plan, len(items(request))), reason)


def _shared(plan: Plan) -> str:
    return "weights shared" if plan.shard else "text encoder spread"


def choose(
    spec: ModelSpec,
    request: JobRequest,
    ranks: int,
    least_memory: bool = False,
    room: Room = Room(),
) -> Choice | None:
    """The best plan for a lane of `ranks` ranks; None where the model does not fit on them."""
    asked, count = request.input, len(items(request))
    dealt = (_dealt(replica, ranks, count) for replica in _replicas(spec, request, ranks))
    plans = [placed for plan in dealt if (placed := room.placed(plan)) is not None]
    whole = next((plan for plan in plans if plan.replica_width == 1), None)
    if not plans:
        return None
    if least_memory:
        plan = max(plans, key=lambda p: (p.ulysses * p.ring, p.ulysses, p.cfg))
        if plan.replica_width > 1 and room.weights > 0:
            plan = replace(plan, shard=True, spread_encoder=False)
        reason = "least memory"
    elif whole and asked.frames == 1 and asked.pixels <= SPLIT_ABOVE_PIXELS:
        plan, reason = whole, "small images are dealt whole"
    else:
        plan = min(plans, key=lambda p: (_duration(p, count), p.shard, p.spread_encoder))
        reason = f"shortest for {count} outputs"
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
