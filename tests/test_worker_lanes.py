"""Which ranks run which job: a pure choice, and turns that nobody is starved by."""

import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.catalog import load_catalog
from jobs.parse import parse_request
from tests.conftest import until
from worker.dealing import worth_dealing
from worker.lanes import Lane, Lanes, Turn, choose_lane, free_lane
from worker.planner import choices

CATALOG = load_catalog(Path(__file__).parent.parent / "jobs" / "models.toml")
ALL = {0, 1, 2, 3}


def options(model: str, size: int = 4, parallel: Any = "auto", **input: Any) -> list[Any]:
    body = {"model": model, "input": {"prompt": "x", **input}, "parallel": parallel}
    request, _ = parse_request(body, CATALOG)
    return choices(CATALOG[model], request, size)


@pytest.mark.parametrize(
    "width,free,lane",
    [
        (1, {2, 3}, (2,)),
        (2, {1, 2}, None),  # not aligned
        (2, {1, 2, 3}, (2, 3)),
        (4, ALL, (0, 1, 2, 3)),
        (4, {0, 1, 2}, None),
    ],
)
def test_a_lane_is_an_aligned_block_of_free_ranks(
    width: int, free: set[int], lane: Lane | None
) -> None:
    assert free_lane(width, free, 4) == lane


def test_a_lane_whose_ranks_have_the_model_is_taken_before_others() -> None:
    assert free_lane(2, ALL, 4, {3}) == (2, 3)
    assert free_lane(1, ALL, 4, {1, 2}) == (1,)
    assert free_lane(1, {0, 3}, 4, {1, 2}) == (0,), "none of them is free"


WAN, FLUX = "wan2.1-t2v-1.3b", "flux.1-dev"


@pytest.mark.parametrize(
    "model,input,waiting,free,width",
    [
        (WAN, {}, 0, ALL, 4),  # alone: all ranks
        (WAN, {}, 1, ALL, 2),
        (WAN, {}, 3, ALL, 1),
        (WAN, {}, 16, ALL, 1),  # a deep queue: as many jobs as ranks
        (WAN, {}, 0, {2, 3}, 2),  # what is left
        (WAN, {}, 0, {1, 2, 3}, 2),
        (WAN, {}, 5, {3}, 1),
        (WAN, {"parallel": {"ulysses": 4}}, 16, {3}, 4),  # waits for its ranks
        (WAN, {"parallel": {"data": 3}, "n": 3}, 0, ALL, 4),
        (FLUX, {}, 0, ALL, 1),  # one small picture gains nothing from more
        (FLUX, {"n": 2}, 0, ALL, 2),
        (FLUX, {"n": 3}, 0, ALL, 4),
        (FLUX, {"n": 9}, 0, ALL, 4),
    ],
)
def test_the_width_follows_what_waits_what_is_free_and_what_the_job_gains(
    model: str, input: dict[str, Any], waiting: int, free: set[int], width: int
) -> None:
    choice, why = choose_lane(options(model, **input), waiting, free, 4)
    assert choice.width == width and why


@pytest.mark.parametrize(
    "takes,others,items,worth",
    [
        (None, {1: (1.0, 0.0)}, 1, True),  # nothing is known of it yet
        (4.0, {}, 1, True),  # nobody else is there
        (4.0, {1: (None, 0.0)}, 1, True),
        (4.0, {1: (1.0, 0.5)}, 1, False),  # the other one has done it in 1.5 s
        (4.0, {1: (1.0, 0.5)}, 3, False),
        (4.0, {1: (1.0, 0.5)}, 4, True),
        (4.0, {1: (1.0, 0.5), 2: (1.0, 0.0)}, 5, False),
        (1.0, {1: (1.0, 0.5)}, 1, True),
        (1.0, {1: (4.0, 9.0)}, 1, True),  # late, and no one knows how late
    ],
)
def test_a_slow_replica_gets_no_item_that_the_others_would_finish_sooner(
    takes: float | None, others: dict[int, tuple[float | None, float]], items: int, worth: bool
) -> None:
    assert worth_dealing(takes, others, items) is worth


def take(lanes: Lanes, width: int, held: list[Lane], leave: threading.Event) -> threading.Thread:
    """A job as a worker's thread runs it, until `leave`."""

    def work() -> None:
        turn = lanes.turn(lambda: False)
        assert isinstance(turn, Turn)
        with turn, lanes.lane(width, turn, lambda: None) as lane:
            held.append(lane)
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_wide_job_is_not_overtaken_by_narrow_ones() -> None:
    lanes, held = Lanes(4), list[Lane]()
    first, second, rest = threading.Event(), threading.Event(), threading.Event()
    threads = [take(lanes, 1, held, first), take(lanes, 1, held, second)]
    until(lambda: len(held) == 2)
    threads.append(take(lanes, 4, held, rest))
    until(lambda: not lanes.idle)
    threads.append(take(lanes, 1, held, rest))
    first.set()
    until(lambda: len(lanes.free()) == 3)
    threads[0].join()
    assert len(held) == 2, "two ranks are free and kept free"
    second.set()
    until(lambda: len(held) == 3)
    assert held[2] == (0, 1, 2, 3)
    rest.set()
    until(lambda: len(held) == 4)
    for thread in threads:
        thread.join()
    assert lanes.free() == ALL and lanes.idle


def test_who_leaves_while_waiting_gives_the_turn_back() -> None:
    lanes = Lanes(2)

    class Left(Exception):
        pass

    def leave() -> None:
        raise Left

    def turn() -> Turn:
        mine = lanes.turn(lambda: False)
        assert mine is not None
        return mine

    with turn() as first, lanes.lane(1, first, leave):
        with pytest.raises(Left), turn() as second, lanes.lane(2, second, leave):
            pass
        with turn() as third, lanes.lane(1, third, leave) as lane:
            assert lane == (1,)
            assert lanes.turn(lambda: not lanes.free()) is None, "no rank is free, and no one waits"
    assert lanes.idle
