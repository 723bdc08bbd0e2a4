"""Plans and retries are pure: tables."""

from pathlib import Path
from typing import Any

import pytest

from jobs.catalog import load_catalog
from jobs.errors import (
    JOB_ERRORS,
    DeadlineExceeded,
    GroupFault,
    Internal,
    Interrupted,
    InvalidInput,
    JobError,
    ModelLoadFailed,
    ModelUnavailable,
    OutOfMemory,
    Poisoned,
    RankDied,
    RankHung,
    SpoolFailed,
    WorkerLost,
)
from jobs.parse import parse_request
from worker.plan import Plan
from worker.planner import Room, choices, choose
from worker.retries import Again, GiveUp, decide

CATALOG = load_catalog(Path(__file__).parent.parent / "jobs" / "models.toml")


def plan_for(model: str, ranks: int, least_memory: bool = False, **input: Any) -> Plan:
    parallel = input.pop("parallel", "auto")
    body = {"model": model, "input": {"prompt": "x", **input}, "parallel": parallel}
    request, _ = parse_request(body, CATALOG)
    if parallel == "auto":
        choice = choose(CATALOG[model], request, ranks, least_memory)
        assert choice is not None
        return choice.plan
    return choices(CATALOG[model], request, ranks)[0].plan


@pytest.mark.parametrize(
    "model,ranks,input,plan",
    [
        ("wan2.1-t2v-1.3b", 1, {}, Plan()),
        ("wan2.1-t2v-1.3b", 2, {}, Plan(cfg=2)),
        ("wan2.1-t2v-1.3b", 4, {}, Plan(cfg=2, ulysses=2)),
        (
            "wan2.1-t2v-1.3b",
            4,
            {"guidance_scale": 1.0},
            Plan(ulysses=4),
        ),  # one pass: nothing to share
        ("wan2.1-t2v-1.3b", 8, {}, Plan(cfg=2, ulysses=4)),
        ("wan2.1-t2v-1.3b", 8, {"guidance_scale": 1.0}, Plan(ulysses=4, ring=2)),  # 12 heads
        ("wan2.1-t2v-1.3b", 8, {"n": 2}, Plan(data=2, cfg=2, ulysses=2)),
        ("wan2.1-t2v-14b", 8, {}, Plan(cfg=2, ulysses=4)),
        ("wan2.1-t2v-14b", 4, {"n": 4}, Plan(data=4)),
        ("wan2.1-t2v-14b", 4, {"n": 5}, Plan(cfg=2, ulysses=2)),  # better than two rounds
        ("wan2.1-t2v-14b", 4, {"n": 8}, Plan(data=4)),
        ("flux.1-dev", 4, {}, Plan()),
        ("flux.1-dev", 4, {"n": 3}, Plan(data=3)),
        ("flux.1-dev", 4, {"n": 9}, Plan(data=4)),
        ("flux.1-dev", 4, {"width": 2048, "height": 2048}, Plan(ulysses=4)),
        ("flux.1-dev", 4, {"parallel": {"data": 1, "ulysses": 4}}, Plan(ulysses=4)),
        ("flux.1-dev", 4, {"parallel": {"data": 2}}, Plan(data=2)),
    ],
)
def test_the_plan(model: str, ranks: int, input: dict[str, Any], plan: Plan) -> None:
    assert plan_for(model, ranks, **input) == plan


def test_after_an_out_of_memory_the_widest_replica_is_taken() -> None:
    assert plan_for("wan2.1-t2v-14b", 4, n=4) == Plan(data=4)
    assert plan_for("wan2.1-t2v-14b", 4, n=4, least_memory=True) == Plan(ulysses=4)
    assert plan_for("wan2.1-t2v-1.3b", 8, least_memory=True) == Plan(ulysses=4, ring=2)
    assert widths("wan2.1-t2v-14b", 4, 41, 80, least_memory=True) == [(4, True)], "weights known"
    assert widths("wan2.1-t2v-14b", 1, 41, 80, least_memory=True) == [(1, False)]


@pytest.mark.parametrize(
    "parallel,words",
    [({"data": 3}, "takes 3 ranks"), ({"ulysses": 4}, "takes 4"), ({"data": 2, "ulysses": 2}, "4")],
)
def test_an_explicit_plan_too_wide_is_refused(parallel: dict[str, int], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        plan_for("flux.1-dev", 2, parallel=parallel)


def test_only_a_model_with_two_named_passes_has_them_shared() -> None:
    spec = CATALOG["wan2.1-t2v-1.3b"]
    request, _ = parse_request({"model": spec.id, "input": {"prompt": "x"}}, CATALOG)
    assert choices(spec, request, 2)[-1].plan == Plan(cfg=2)
    doubled = spec.model_copy(update={"guidance": "none"})
    assert choices(doubled, request, 2)[-1].plan == Plan(ulysses=2)


GB = 10**9


def widths(
    model: str,
    ranks: int,
    weights_gb: float,
    rank_gb: float,
    least_memory: bool = False,
    **fields: Any,
) -> list[Any]:
    request, _ = parse_request({"model": model, "input": {"prompt": "x"}, **fields}, CATALOG)
    room = Room(int(weights_gb * GB), 0, int(rank_gb * GB))
    found = choices(CATALOG[model], request, ranks, least_memory, room)
    return [(choice.width, choice.plan.shard) for choice in found]


@pytest.mark.parametrize(
    "rank_gb,plan",
    [
        (40, Plan(data=4)),
        (35, Plan(data=4, spread_encoder=True)),
        (24, Plan(ulysses=4, shard=True)),
    ],
)
def test_where_only_the_text_encoder_is_too_much_it_is_spread(rank_gb: int, plan: Plan) -> None:
    model = "flux.1-dev"
    request, _ = parse_request({"model": model, "input": {"prompt": "x", "n": 8}}, CATALOG)
    room = Room(34 * GB, 10 * GB, rank_gb * GB)
    assert choices(CATALOG[model], request, 4, room=room)[-1].plan == plan
    worn = {"prompt": "x", "n": 8, "loras": [{"name": "turbo"}]}
    request, _ = parse_request({"model": model, "input": worn}, CATALOG)
    assert not choices(CATALOG[model], request, 4, room=room)[-1].plan.spread_encoder


def test_weights_that_do_not_fit_on_a_rank_are_shared_by_as_many_as_it_takes() -> None:
    assert widths("wan2.1-t2v-14b", 4, 41, 80) == [(1, False), (2, False), (4, False)]
    assert widths("wan2.1-t2v-14b", 4, 41, 40) == [(2, True), (4, True)]
    assert widths("wan2.1-t2v-14b", 4, 41, 24) == [(4, True)]
    assert widths("wan2.1-t2v-14b", 4, 41, 0) == [(1, False), (2, False), (4, False)], "unknown"
    assert widths("flux.1-dev", 4, 34, 24) == [(4, True)], "small pictures too"
    assert widths("wan2.1-t2v-14b", 4, 41, 24, parallel={"ulysses": 4}) == [(4, True)]
    for fields in ({}, {"parallel": {"ulysses": 2}}):
        with pytest.raises(InvalidInput, match=r"41 GB of weights and a rank here 8 GB.* 8 ranks"):
            widths("wan2.1-t2v-14b", 4, 41, 8, **fields)


def test_an_explicit_split_must_divide_the_group() -> None:
    with pytest.raises(InvalidInput, match="do not divide"):
        plan_for("wan2.1-t2v-1.3b", 4, parallel={"ulysses": 3}, width=768)


def test_replicas_are_aligned_blocks_of_the_lane() -> None:
    assert Plan(data=2, ulysses=2).replicas(range(4)) == [(0, 1), (2, 3)]
    assert Plan(data=3).replicas([4, 5, 6, 7]) == [(4,), (5,), (6,)]
    with pytest.raises(ValueError, match="ulysses=0"):
        Plan(ulysses=0)


OOM, DIED, FULL = ({"code": code} for code in ("out_of_memory", "rank_died", "spool_failed"))
AWAY = {"code": "model_unavailable"}


@pytest.mark.parametrize(
    "error,earlier,decision",
    [
        (InvalidInput("x"), [], GiveUp(dead=False)),
        (ModelLoadFailed("x"), [], GiveUp(dead=False)),
        (DeadlineExceeded("x"), [], GiveUp(dead=False)),
        (OutOfMemory("x"), [], Again()),
        (OutOfMemory("x"), [DIED], Again()),
        (OutOfMemory("x"), [OOM], GiveUp(dead=True)),
        (RankDied("x"), [], Again()),
        (RankHung("x"), [DIED], Again()),
        (RankHung("x"), [DIED, DIED], GiveUp(dead=True)),
        (Interrupted("x"), [DIED] * 9, Again(counted=False)),
        (SpoolFailed("x"), [DIED] * 2, Again(delay_s=5)),
        (SpoolFailed("x"), [FULL] * 3, Again(delay_s=40)),
        (SpoolFailed("x"), [FULL] * 8, Again(delay_s=300)),
        (SpoolFailed("x"), [FULL] * 9, GiveUp(dead=True)),
        (RankDied("x"), [FULL] * 5 + [DIED], Again()),
        (ModelUnavailable("x"), [DIED], Again(delay_s=2.5)),
        (ModelUnavailable("x"), [AWAY] * 3, Again(delay_s=20)),
        (ModelUnavailable("x"), [AWAY] * 4, GiveUp(dead=True)),
        (RankDied("x"), [AWAY] * 4 + [DIED], Again()),
        (Internal("x"), [], GiveUp(dead=True)),
        (Poisoned(), [], GiveUp(dead=True)),
    ],
)
def test_what_follows_a_failed_attempt(
    error: JobError, earlier: list[dict[str, Any]], decision: Again | GiveUp
) -> None:
    assert decide(error, earlier, chance=0.5) == decision


def test_what_a_rank_names_is_known_here() -> None:
    """Else a kind of error comes as `internal`, and is never tried again."""
    named = [GroupFault, JobError]  # by their kinds alone
    ours = [WorkerLost, Poisoned, DeadlineExceeded, Interrupted]  # never a rank's
    known = [kind for each in (JobError, GroupFault) for kind in each.__subclasses__()]
    assert {*JOB_ERRORS.values(), *named, *ours} == {*known, JobError}
