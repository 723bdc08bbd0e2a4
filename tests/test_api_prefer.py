"""`Prefer: wait`, in every form that clients send, and when there is no place to wait in."""

import threading
import time
from typing import Any

import pytest
from flask.testing import FlaskClient

from api.places import Places
from jobs.catalog import Catalog
from jobs.errors import TooManyStreams
from jobs.store import JobStore
from tests.conftest import until
from tests.fixtures.jobs import ask


@pytest.fixture
def hasty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    """The cap is 1 s."""
    monkeypatch.setenv("FLEET_MAX_WAIT_S", "1")
    client: FlaskClient = request.getfixturevalue("client")
    return client


@pytest.mark.parametrize(
    "prefer,applied",
    [
        ("wait", "wait=1"),
        ("Wait", "wait=1"),
        ("WAIT=9", "wait=1"),
        ('wait="1"', "wait=1"),
        ("respond-async, wait", "wait=1"),
        ("wait = 1; foo=bar", "wait=1"),
        ("wait=" + "9" * 5000, "wait=1"),
        ("wait=0", None),
        ("wait=soon", None),
        ("wait=-1", None),
        ("await=1", None),
        ("no-wait", None),
        ("foo=wait", None),
        ("", None),
    ],
)
def test_every_form_of_a_wait(
    hasty: FlaskClient, store: JobStore, catalog: Catalog, prefer: str, applied: str | None
) -> None:
    id, _ = store.submit(ask(catalog))
    answer: Any = hasty.get(f"/v1/jobs/{id}", headers={"Prefer": prefer})
    assert answer.status_code == 200
    assert answer.headers.get("Preference-Applied") == applied


def test_where_no_place_is_left_a_wait_is_answered_at_once(
    client: FlaskClient, store: JobStore, catalog: Catalog
) -> None:
    """FLEET_MAX_STREAMS is 2 here: one stream and one who waits fill the process."""
    id, _ = store.submit(ask(catalog))
    asked = {"model": "tiny-image", "input": {"prompt": "x"}}
    prefer = {"Prefer": "wait=20", "Accept": "image/*"}
    places = client.application.extensions["fleet"].places
    with client.get(f"/v1/jobs/{id}/events", buffered=False) as stream:
        with places.held("default"):
            began = time.monotonic()
            made: Any = client.post("/v1/jobs", json=asked, headers=prefer)
            read: Any = client.get(f"/v1/jobs/{id}", headers=prefer)
            assert time.monotonic() - began < 15
            picture: Any = client.post("/v1/images/generations", json={"prompt": "x"})
        assert stream.status_code == 200
        short = client.get(f"/v1/jobs/{id}", headers={"Prefer": "wait=1"})
        assert short.headers["Preference-Applied"] == "wait=1", "there is room again"
    assert made.status_code == 202 and made.json["status"] == "queued"
    assert read.status_code == 200
    for answer in (made, read):
        assert "Preference-Applied" not in answer.headers
    assert picture.status_code == 429 and picture.json["code"] == "too_many_streams"


def test_who_waits_takes_a_place_and_gives_it_back(
    client: FlaskClient, store: JobStore, catalog: Catalog
) -> None:
    id, _ = store.submit(ask(catalog))
    places = client.application.extensions["fleet"].places

    def wait() -> None:
        own = client.application.test_client()
        assert own.get(f"/v1/jobs/{id}", headers={"Prefer": "wait=30"}).status_code == 200

    waiting = [threading.Thread(target=wait) for _ in range(2)]
    for thread in waiting:
        thread.start()
    until(lambda: _full(places), 20)
    assert client.get(f"/v1/jobs/{id}/events").status_code == 429
    store.cancel(id)
    for thread in waiting:
        thread.join(20)
    with places.held("default"), places.held("default"):
        assert _full(places)


def _full(places: Places) -> bool:
    try:
        with places.held("default"):
            return False
    except TooManyStreams:
        return True


def test_one_tenant_has_half_of_the_places() -> None:
    places = Places(5, 2)
    with places.held("a"), places.held("a"):
        with pytest.raises(TooManyStreams, match="2 of yours"):
            places.take("a")
        for tenant in ("b", "b", "c"):
            places.take(tenant)
        with pytest.raises(TooManyStreams, match="5 requests"):
            places.take("d")
        places.give_back("c")
        places.take("d")
    places.take("a")
