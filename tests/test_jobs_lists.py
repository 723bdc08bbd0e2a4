"""Pages of jobs, on a real Valkey."""

from typing import Any

import pytest

from jobs.catalog import Catalog
from jobs.lists import Wanted
from jobs.record import JobState
from jobs.request import JobRequest
from jobs.store import JobStore
from tests.fixtures.jobs import ask, claim


@pytest.fixture
def request_(catalog: Catalog) -> JobRequest:
    return ask(catalog)


def test_pages_follow_one_another_without_gap_or_double(
    store: JobStore, request_: JobRequest
) -> None:
    ids = [store.submit(request_)[0] for _ in range(7)]
    for newest_first, expected in ((True, ids[::-1]), (False, ids)):
        seen: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page, cursor = store.lists.page(limit=3, after=cursor, newest_first=newest_first)
            seen += [job.id for job in page]
        assert seen == expected
    store.cancel(ids[2])
    assert [j.id for j in store.lists.page(wanted=Wanted(JobState.CANCELED))[0]] == [ids[2]]
    assert len(store.lists.page(wanted=Wanted(JobState.QUEUED))[0]) == 6


def test_a_list_of_those_that_are_being_canceled(store: JobStore, request_: JobRequest) -> None:
    def listed(state: str) -> list[str]:
        return [job.id for job in store.lists.page(wanted=Wanted(state))[0]]

    waiting, runs, ends = (store.submit(request_)[0] for _ in range(3))
    held = {mine.id: mine for mine in (claim(store, ranks=1) for _ in range(3))}
    store.fail(held[waiting], {"code": "rank_died"}, 0)
    for id in (runs, ends):
        store.cancel(id)
    assert listed("canceling") == [ends, runs] and listed("queued") == [waiting]
    assert listed("running") == [], "each job is listed by what its answer says"
    store.finish(held[ends], JobState.CANCELED)
    assert listed("canceling") == [runs] and listed("canceled") == [ends]
    store.delete(runs)
    assert listed("canceling") == []


def test_a_list_of_what_is_wanted_alone(store: JobStore, catalog: Catalog) -> None:
    models = ["tiny-image", "tiny-video"] * 3
    ids = [store.submit(ask(catalog, model=model))[0] for model in models]
    store.cancel(ids[1])
    jobs = [store.get(id) for id in ids]
    times = [job.created_at for job in jobs if job]

    def listed(**wanted: Any) -> list[str]:
        return [job.id for job in store.lists.page(wanted=Wanted(**wanted), newest_first=False)[0]]

    assert listed(model="tiny-video") == listed(task="text-to-video") == ids[1::2]
    assert listed(model="tiny-video", state=JobState.QUEUED) == ids[3::2]
    assert listed(since=times[2], until=times[4]) == ids[2:5]
    first, cursor = store.lists.page(wanted=Wanted(model="tiny-video"), limit=2)
    rest, end = store.lists.page(wanted=Wanted(model="tiny-video"), limit=2, after=cursor or "")
    assert [job.id for job in first + rest] == ids[5::-2] and end is None
