"""The ETag of a job: the same only while its answer would do as well."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from jobs.catalog import Catalog
from jobs.store import JobStore
from tests.fixtures.jobs import ask, claim, finish


def known(client: FlaskClient, id: str, tag: str = "") -> Any:
    return client.get(f"/v1/jobs/{id}", headers={"If-None-Match": tag} if tag else {})


def test_what_has_not_changed_is_not_sent_again(
    client: FlaskClient, store: JobStore, catalog: Catalog, tmp_path: Path
) -> None:
    id, _ = store.submit(ask(catalog))
    waiting = known(client, id)
    assert known(client, id, waiting.headers["ETag"]).status_code == 304
    data = finish(store, tmp_path / "storage")
    done = known(client, id, waiting.headers["ETag"])
    assert done.status_code == 200 and done.json["outputs"][0]["bytes"] == len(data)
    again = known(client, id, done.headers["ETag"])
    assert again.status_code == 304 and not again.data
    assert again.headers["ETag"] == done.headers["ETag"]


def test_a_place_in_the_queue_is_news_though_the_job_is_the_same(
    client: FlaskClient, store: JobStore, catalog: Catalog
) -> None:
    store.submit(ask(catalog))
    id, _ = store.submit(ask(catalog))
    second = known(client, id)
    assert second.json["queue"]["position"] == 1
    claim(store)
    first = known(client, id, second.headers["ETag"])
    assert first.status_code == 200 and first.json["queue"]["position"] == 0
    assert first.json["seq"] == second.json["seq"]


def test_links_are_renewed_before_they_are_dead(
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    store: JobStore,
    catalog: Catalog,
    tmp_path: Path,
) -> None:
    """They live for 8 s here: an answer that is 4 s old is never confirmed."""
    monkeypatch.setenv("FLEET_LINK_S", "8")
    client: FlaskClient = request.getfixturevalue("s3_client")
    id, _ = store.submit(ask(catalog))
    data = finish(store, tmp_path)
    client.application.extensions["fleet"].storage.put(f"results/{id}/0", data)
    time.sleep(4 - time.time() % 4)  # a half begins
    first = known(client, id)
    same = known(client, id, first.headers["ETag"])
    assert same.status_code == 304, "though its link would be another"
    time.sleep(4 - time.time() % 4)
    later = known(client, id, first.headers["ETag"])
    assert later.status_code == 200, "the half of their life is over"
    links = [answer.json["outputs"][0]["download_url"] for answer in (first, later)]
    assert links[0] != links[1]
    assert [httpx.get(link).content for link in links] == [data, data], "the old one lives, too"
