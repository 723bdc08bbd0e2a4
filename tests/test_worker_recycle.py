"""New ranks after so many jobs, or when they have grown; never under a job."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.catalog import Catalog
from jobs.settings import Settings
from tests.conftest import until
from tests.fixtures.bench import Bench, rank_pids
from worker.group import Group
from worker.lanes import Lanes
from worker.plan import Plan
from worker.recycle import Recycling


@pytest.fixture(scope="module")
def group(rank_settings: Settings) -> Iterator[Group]:
    group = Group(2, rank_settings)
    group.start()
    yield group
    group.stop()


def never() -> bool:
    return False


def test_after_so_many_jobs_and_not_while_another_lane_works(
    group: Group, rank_settings: Settings, catalog: Catalog, tmp_path: Path
) -> None:
    lanes, warmed = Lanes(2), []
    settings = replace(rank_settings, recycle_jobs=2)
    recycling = Recycling(settings, group, lanes, lambda: warmed.append(rank_pids(group)))
    before = rank_pids(group)
    recycling.after_job(never)
    assert rank_pids(group) == before
    turn = lanes.turn(never)
    assert turn is not None
    with lanes.lane(1, turn, lambda: None):  # a job on one rank
        waiting = threading.Thread(target=recycling.after_job, args=(never,))
        waiting.start()
        until(lambda: lanes._turn.locked(), 30)
        assert rank_pids(group) == before and waiting.is_alive()
    waiting.join(60)
    assert warmed == [rank_pids(group)] and not set(warmed[0]) & set(before)
    assert len(Bench(group, catalog, tmp_path).run("tiny-image", Plan())) == 1
    recycling.after_job(never)
    assert rank_pids(group) == warmed[0], "they count anew"


def test_when_their_processes_have_grown(
    group: Group, rank_settings: Settings, catalog: Catalog, tmp_path: Path
) -> None:
    settings = replace(rank_settings, recycle_growth_bytes=20_000_000)
    recycling = Recycling(settings, group, Lanes(2), lambda: None)
    recycling.after_job(never)
    before = rank_pids(group)
    recycling.after_job(never)
    assert rank_pids(group) == before, "nothing has happened"
    bench = Bench(group, catalog, tmp_path)
    bench.run("tiny-sdxl", Plan(data=2), prompt=["a", "b"])  # its weights and libraries
    bench.run("tiny-qwen", Plan(data=2), prompt=["a", "b"])
    recycling.after_job(never)
    assert not set(rank_pids(group)) & set(before)
