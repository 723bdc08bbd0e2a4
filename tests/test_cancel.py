"""A cancel or a passed deadline, wherever the job is in the fleet: the ranks are soon free again.

In the stages that ranks compute: tests/test_worker_group*.py.
"""

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import RunningFleet, frozen, until

BOTH: dict[str, Any] = {"parallel": {"ulysses": 2}}
Reach = Callable[[RunningFleet, dict[str, Any]], str]


def queued(fleet: RunningFleet, top: dict[str, Any]) -> str:
    """All threads of the worker hold jobs already: one runs, one waits for ranks."""
    first = [fleet.submit("sleeps", num_inference_steps=400, **BOTH) for _ in range(3)]
    until(lambda: fleet.client.job(first[0])["progress"]["value"] > 0)
    return fleet.submit("counts", **BOTH, **top)


def waits_for_ranks(fleet: RunningFleet, top: dict[str, Any]) -> str:
    fleet.wait_running(fleet.submit("sleeps", num_inference_steps=400, parallel={"data": 1}))
    id = fleet.submit("counts", **BOTH, **top)
    until(lambda: fleet.client.job(id)["status"] == "running")
    assert fleet.client.job(id)["plan"] is None
    return id


def denoises(fleet: RunningFleet, top: dict[str, Any]) -> str:
    id = fleet.submit("sleeps", num_inference_steps=500, **BOTH, **top)
    fleet.wait_running(id, 0.02)
    return id


def uploads(fleet: RunningFleet, top: dict[str, Any]) -> str:
    """To a storage that is away."""
    id = fleet.submit("counts", num_inference_steps=1, **top)
    until(lambda: fleet.client.job(id)["progress"]["stage"] == "upload")
    return id


@pytest.fixture
def storage_away(request: pytest.FixtureRequest, s3_fleet: RunningFleet) -> Any:
    away = request.param
    if not away:
        yield
        return
    with frozen(next(p for p in s3_fleet.pids("weed") if p.ppid() == s3_fleet.process.pid)):
        yield


@pytest.mark.parametrize(
    "reach,storage_away",
    [(each, each is uploads) for each in (queued, waits_for_ranks, denoises, uploads)],
    indirect=["storage_away"],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.usefixtures("storage_away")
@pytest.mark.parametrize("by", ["cancel", "deadline"])
def test_it_ends_and_the_ranks_go_on(s3_fleet: RunningFleet, reach: Reach, by: str) -> None:
    fleet = s3_fleet
    restarts = _restarts(fleet)
    id = reach(fleet, {"deadline_s": 6} if by == "deadline" else {})
    before = fleet.client.job(id)
    if by == "cancel":
        fleet.client.call("POST", f"/v1/jobs/{id}/cancel")
    job = fleet.wait(id)
    if by == "cancel":
        assert job["status"] == "canceled"
    elif before["status"] == "queued":
        assert job["status"] == "expired"
    else:
        assert job["status"] == "failed" and job["error"]["code"] == "deadline_exceeded"
    assert job["outputs"] == [] and job["attempt"] == before["attempt"] <= 1
    assert (job["metrics"].get("gpu_seconds", 0) > 0) == (reach in (denoises, uploads))
    for status in ("queued", "running"):
        for other in fleet.client.call("GET", f"/v1/jobs?status={status}")["data"]:
            fleet.client.call("POST", f"/v1/jobs/{other['id']}/cancel")
    fleet.wait_running(fleet.submit("counts", **BOTH))
    assert _restarts(fleet) == restarts, "nobody was killed for it"


def _restarts(fleet: RunningFleet) -> int:
    (card,) = fleet.client.call("GET", "/v1/workers")["data"]
    return int(card["restarts"])
