"""A real group of four ranks on gloo: several jobs at once, each on its lane."""

import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from jobs.catalog import Catalog
from jobs.errors import Internal, Interrupted, ModelLoadFailed, RankDied
from jobs.settings import Settings
from tests.fixtures.bench import Bench, rank_pids, ready
from worker.group import Event, Group
from worker.plan import Plan
from worker.protocol import Done, Ended, Progress

Notes = Callable[[str], list[str]]
LEFT, RIGHT = (0, 1), (2, 3)


@pytest.fixture(scope="module")
def group(rank_settings: Settings) -> Iterator[Group]:
    group = Group(4, rank_settings)
    group.start()
    yield group
    group.stop()


@pytest.fixture
def pair(group: Group, catalog: Catalog, tmp_path: Path) -> tuple[Bench, Bench]:
    return Bench(group, catalog, tmp_path / "left"), Bench(group, catalog, tmp_path / "right")


class Aside(threading.Thread):
    """A run in a thread of its own; what it answered or raised."""

    def __init__(self, bench: Bench, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self._call = lambda: bench.run(*args, **kwargs)
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._call()
        except Exception as error:
            self.answer = error


def test_two_lanes_at_once_change_nothing(pair: tuple[Bench, Bench]) -> None:
    left, right = pair
    video = left.run("tiny-video", Plan(), lane=(0,), prompt=["a", "b"], seed=1)
    image = left.run("tiny-image", Plan(), lane=(0,), prompt=["c", "d", "e"], seed=2)
    for plan in (Plan(ulysses=2), Plan(cfg=2), Plan(ring=2), Plan(data=2)):
        beside = Plan(ulysses=2) if plan.data == 1 else Plan(data=2)
        other = Aside(right, "tiny-image", beside, lane=RIGHT, prompt=["c", "d", "e"], seed=2)
        assert left.run("tiny-video", plan, lane=LEFT, prompt=["a", "b"], seed=1) == video
        other.join()
        assert other.answer == image
        assert {e.rank for e in right.events if isinstance(e, Progress)} <= set(RIGHT)


def test_a_cancel_stops_its_own_lane_only(pair: tuple[Bench, Bench]) -> None:
    left, right = pair
    other = Aside(right, "counts", Plan(ulysses=2), lane=RIGHT, num_inference_steps=40)

    def on_event(event: Event) -> None:
        if left.step(3)(event):
            left.cancel.set()

    left.run("counts", Plan(ulysses=2), on_event, lane=LEFT, num_inference_steps=100)
    assert left.events[-1] == Ended(canceled=True)
    other.join()
    assert len(other.answer) == 1 and right.events[-1] == Ended(canceled=False)


def test_a_job_that_was_claimed_again_runs_beside_its_first_attempt(
    pair: tuple[Bench, Bench],
) -> None:
    """A worker that was cut off may claim its own job anew, before the first attempt knows."""
    left, right = pair
    other = Aside(right, "counts", Plan(ulysses=2), lane=RIGHT, job="one", num_inference_steps=40)
    first = left.run("counts", Plan(ulysses=2), lane=LEFT, job="one", num_inference_steps=10)
    assert len(left.group.about()["lanes"]) == 1
    other.join()
    assert len(first) == 1 and right.events[-1] == Ended(canceled=False)


STEPS = 500  # more than a busy machine computes before the wish arrives
EVERY_PLAN = [
    Plan(data=4),
    Plan(data=2, cfg=2),
    Plan(data=2, ring=2),
    Plan(ulysses=4),
    Plan(ring=4),
    Plan(ulysses=2, ring=2),
    Plan(cfg=2, ulysses=2),
    Plan(cfg=2, ring=2),
    Plan(ulysses=4, shard=True),
    Plan(cfg=2, ulysses=2, shard=True),
    Plan(data=4, spread_encoder=True),
    Plan(data=2, cfg=2, spread_encoder=True),
]


@pytest.mark.parametrize("plan", EVERY_PLAN, ids=str)
def test_a_cancel_ends_all_ranks_of_a_replica_at_the_same_step(
    pair: tuple[Bench, Bench], plan: Plan
) -> None:
    bench, _ = pair
    asked = {"prompt": ["a"] * plan.data, "num_frames": 5, "seed": 1}

    def on_event(event: Event) -> None:
        if bench.step(3)(event):
            bench.cancel.set()

    bench.run("tiny-video", plan, on_event, num_inference_steps=STEPS, **asked)
    assert bench.events[-1] == Ended(canceled=True)
    steps = [e for e in bench.events if isinstance(e, Progress) and e.stage == "denoise"]
    for replica in plan.replicas(range(4)):
        last = {max((e.step for e in steps if e.rank == rank), default=0) for rank in replica}
        assert len(last) == 1 and last.pop() < STEPS
    bench.cancel.clear()
    again = bench.run("tiny-video", plan, num_inference_steps=2, **asked)
    alone = bench.run("tiny-video", Plan(), num_inference_steps=2, lane=(0,), **asked)
    assert again == alone, "and the next job is exact"


@pytest.mark.parametrize("plan", [Plan(data=4), Plan(ulysses=4), Plan(data=2, ulysses=2)], ids=str)
def test_ranks_do_not_wait_for_an_encoder_that_another_one_can_not_load(
    pair: tuple[Bench, Bench], models_dir: Path, plan: Plan
) -> None:
    bench, _ = pair
    before = rank_pids(bench.group)
    folder = models_dir / "no-encoder"
    shutil.copytree(models_dir / "tiny-image", folder, dirs_exist_ok=True)
    (folder / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(ModelLoadFailed, match="no-encoder can't be loaded"):
        bench.run("no-encoder", replace(plan, spread_encoder=True), prompt=["a"] * plan.data)
    assert rank_pids(bench.group) == before, "the group lives"


@pytest.mark.parametrize("alone", [False, True], ids=["beside another job", "alone"])
def test_a_cancel_in_a_long_stage_kills_only_where_nobody_else_is_at_work(
    pair: tuple[Bench, Bench], alone: bool
) -> None:
    bench, right = pair
    before = rank_pids(bench.group)
    if not alone:
        steps = {"num_inference_steps": 500}
        other = Aside(right, "sleeps", Plan(ulysses=2), lane=RIGHT, **steps)

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "text_encode":
            bench.cancel.set()

    bench.run("naps", Plan(ulysses=2), on_event, lane=LEFT)
    assert bench.events[-1] == Ended(canceled=True)
    bench.cancel.clear()
    if alone:
        assert bench.group.wait_ready()
        assert not set(rank_pids(bench.group)) & set(before)
    else:
        assert bench.group.about()["ready"] and rank_pids(bench.group) == before
        right.cancel.set()
        other.join()
        right.cancel.clear()


@pytest.mark.parametrize("plan", [Plan(ulysses=4), Plan()], ids=str)
def test_a_cancel_ends_a_decoding_before_its_last_picture(
    pair: tuple[Bench, Bench], plan: Plan, rank_settings: Settings
) -> None:
    bench, _ = pair
    asked = {"width": 128, "height": 128, "num_inference_steps": 1, "num_frames": 33}

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "vae_decode":
            bench.cancel.set()

    bench.run("tiny-video", plan, on_event, lane=range(plan.width), **asked)
    assert bench.events[-1] == Ended(canceled=True)
    assert not [event for event in bench.events if isinstance(event, Done)]
    log = (rank_settings.logs / "rank-0.log").read_text()
    said = [line for line in log.splitlines() if "canceled at step" in line][-1]
    assert "stage=vae_decode" in said and said.endswith("step 1"), "not by the stage after it"
    bench.cancel.clear()
    assert len(bench.run("tiny-video", plan, lane=range(plan.width), num_inference_steps=1)) == 1


def test_a_rank_that_dies_costs_the_other_lane_no_try(pair: tuple[Bench, Bench]) -> None:
    left, right = pair
    other = Aside(right, "counts", Plan(ulysses=2), lane=RIGHT, num_inference_steps=100)
    killed: list[int] = []

    def on_event(event: Event) -> None:
        if left.step(3)(event) and not killed:
            killed.append(rank_pids(left.group)[1])
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(RankDied, match="Rank 1"):
        left.run("counts", Plan(ulysses=2), on_event, lane=LEFT, num_inference_steps=100)
    other.join()
    assert isinstance(other.answer, Interrupted), "not counted: worker/retries.py"
    ready(left.group)
    assert len(right.run("tiny-image", Plan(ulysses=2), lane=RIGHT)) == 1


def test_a_rank_that_dies_idle_costs_nobody_a_try(pair: tuple[Bench, Bench]) -> None:
    left, _ = pair
    killed: list[int] = []

    def on_event(event: Event) -> None:
        if left.step(3)(event) and not killed:
            killed.append(rank_pids(left.group)[3])
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(Interrupted):
        left.run("counts", Plan(ulysses=2), on_event, lane=LEFT, num_inference_steps=100)
    ready(left.group)


def test_a_tensor_on_the_wrong_device_is_named_and_the_group_lives(
    pair: tuple[Bench, Bench],
) -> None:
    bench, _ = pair
    before = rank_pids(bench.group)
    with pytest.raises(Internal, match=r"vae\.stray is on meta"):
        bench.run("misplaced", Plan(ulysses=2), lane=LEFT)
    assert len(bench.run("tiny-image", Plan(ulysses=2), lane=LEFT)) == 1
    assert rank_pids(bench.group) == before


def test_ranks_whose_latents_differ_are_found_where_that_is_looked_for(
    rank_settings: Settings, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_DEBUG", "1")
    group = Group(2, rank_settings)
    group.start()
    bench = Bench(group, catalog, tmp_path)
    try:
        assert len(bench.run("tiny-image", Plan(ulysses=2))) == 1
        with pytest.raises(Internal, match="latents"):
            bench.run("strays", Plan(ulysses=2))
    finally:
        group.stop()


def test_a_slow_rank_gets_fewer_items_by_the_measure_of_its_pace(
    pair: tuple[Bench, Bench], notes: Notes
) -> None:
    """Rank 1 takes about four times as long. The ideal division gives each rank items by the
    inverse of its pace, and none waits for another."""
    bench, _ = pair
    bench.run("sleeps", Plan(data=4), prompt=["slow rank"] * 64, num_inference_steps=3)
    share = Counter(notes("sleeps"))
    assert sum(share.values()) == 64, "no item twice, none lost"
    done = [event for event in bench.events if isinstance(event, Done)]
    pace = {
        rank: median(event.timings["denoise_s"] for event in done if event.rank == rank)
        for rank in range(4)
    }
    ideal = 64 / sum(1 / seconds for seconds in pace.values())
    assert pace[1] > 1.5 * pace[0]
    assert max(share[str(rank)] * pace[rank] for rank in pace) <= 1.15 * ideal


def test_who_reads_late_takes_nobody_for_hung(pair: tuple[Bench, Bench]) -> None:
    """A worker may be held up by a Redis that does not answer; its ranks have gone on meanwhile."""
    bench, _ = pair

    def on_event(event: Event) -> None:
        if bench.step(5)(event):
            time.sleep(4)  # longer than the watchdog's 3 s

    asked = {"lane": LEFT, "num_inference_steps": 100}
    assert len(bench.run("counts", Plan(ulysses=2), on_event, **asked)) == 1
