"""Links to outputs that need no key: what they open, and what they do not."""

import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient
from openai import OpenAI

import api
from cli.main import fleet
from jobs.store import JobStore
from tests.conftest import until
from tests.fixtures.jobs import finish

JOB = {"model": "tiny-image", "input": {"prompt": "x"}}


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The header of a key of tenant a; the API asks for keys."""
    words = ["keys", "--file", str(tmp_path / "keys"), "create", "--tenant", "a"]
    made = CliRunner().invoke(fleet, words).output.strip()
    monkeypatch.setenv("FLEET_API_KEYS_FILE", str(tmp_path / "keys"))
    return {"Authorization": f"Bearer {made}"}


def drawn(
    client: FlaskClient, key: dict[str, str], store: JobStore, data: Path
) -> tuple[Any, bytes]:
    """A job that is done, as its caller reads it, and its picture."""
    id = client.post("/v1/jobs", json=JOB, headers=key).json["id"]  # type: ignore[index]
    picture = finish(store, data / "storage")
    return client.get(f"/v1/jobs/{id}", headers=key).json, picture


def place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


def test_a_link_opens_its_output_for_whoever_has_it(
    key: dict[str, str], client: FlaskClient, store: JobStore, tmp_path: Path
) -> None:
    job, picture = drawn(client, key, store, tmp_path)
    (output,) = job["outputs"]
    link = place(output["download_url"])
    assert (
        output["url_expires_at"]
        and client.get(place(output["url"]), buffered=True).status_code == 401
    )
    assert (
        client.get(link, buffered=True).data == picture
        and client.head(link, buffered=True).status_code == 200
    )
    part = client.get(link, headers={"Range": "bytes=0-9"}, buffered=True)
    assert part.status_code == 206 and part.data == picture[:10]
    odd = client.get(link, headers={"Range": "pages=1-2"}, buffered=True)
    assert odd.status_code == 200 and odd.data == picture, "no unit of ours: no range"
    several = client.get(link, headers={"Range": "bytes=0-0,-1"}, buffered=True)
    assert several.status_code == 200 and several.data == picture
    other = api.create_app().test_client()  # another process of the same API
    assert other.get(link, headers={"Authorization": "Basic eDp5"}, buffered=True).data == picture
    small = client.get(f"{link}&variant=thumbnail", buffered=True)
    assert small.status_code == 404, "this one has none; the link was accepted"
    assert client.delete(f"/v1/jobs/{job['id']}", headers=key).status_code == 204
    assert client.get(link, buffered=True).status_code == 404


def test_a_link_opens_nothing_else(
    key: dict[str, str], client: FlaskClient, store: JobStore, tmp_path: Path
) -> None:
    job, _ = drawn(client, key, store, tmp_path)
    other, _ = drawn(client, key, store, tmp_path)
    here, _, query = place(job["outputs"][0]["download_url"]).partition("?")
    fields = {name: values[0] for name, values in parse_qs(query).items()}
    assert "has expired" in client.get(f"{here}?expires=1&signature=x").json["detail"]  # type: ignore[index]
    later, mac = int(fields["expires"]) + 1, fields["signature"]
    forged = mac[:-1] + ("0" if mac[-1] != "0" else "1")
    for path in (
        here,
        f"{here}?expires={fields['expires']}",
        f"{here}?signature={mac}",
        f"{here}?expires={later}&signature={mac}",
        f"{here}?expires={fields['expires']}&signature={forged}",
        f"{here}?expires={fields['expires']}&signature={mac[:-1]}",
        f"{here}?expires={fields['expires']}&signature=%C3%A9",
        f"{here}?expires=-1&signature={mac}",
        f"{here}?expires={'9' * 5000}&signature={mac}",
        f"/v1/jobs/{job['id']}/outputs/1?{query}",
        f"/v1/jobs/{other['id']}/outputs/0?{query}",
        f"/v1/jobs/{job['id']}?{query}",
        f"/v1/jobs/{job['id']}/preview?{query}",
        f"/v1/jobs?{query}",
        f"/v1/videos/{job['id']}/content?{query}",
        f"/v1/nothing?{query}",
    ):
        assert client.get(path).status_code == 401, path
    assert client.delete(f"/v1/jobs/{job['id']}?{query}").status_code == 401
    assert client.post(f"{here}?{query}").status_code == 401


def test_a_link_expires(
    key: dict[str, str],
    client: FlaskClient,
    store: JobStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job, picture = drawn(client, key, store, tmp_path)
    monkeypatch.setenv("FLEET_LINK_S", "1")
    began = int(time.time())
    brief: Any = api.create_app().test_client().get(f"/v1/jobs/{job['id']}", headers=key).json
    short, long = (place(read["outputs"][0]["download_url"]) for read in (brief, job))
    expires = int(parse_qs(urlsplit(short).query)["expires"][0])
    assert began < expires <= time.time() + 2
    time.sleep(2.1)
    assert client.get(short, buffered=True).status_code == 401
    assert client.get(long, buffered=True).data == picture


def test_what_is_finished_can_be_read_while_redis_is_full(
    key: dict[str, str],
    client: FlaskClient,
    store: JobStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what is deleted, which makes room; the minute's requests are counted all the while."""
    monkeypatch.setenv("FLEET_RATE_PER_MINUTE", "1000")
    asked = api.create_app().test_client()
    job, picture = drawn(asked, key, store, tmp_path)
    url = f"/v1/jobs/{job['id']}"
    store._redis.config_set("maxmemory", 1000)
    try:
        again: Any = asked.get(url, headers=key)
        assert again.status_code == 200 and int(again.headers["RateLimit-Remaining"]) < 1000
        link = place(again.json["outputs"][0]["download_url"])
        assert asked.get(link, buffered=True).data == picture
        assert asked.delete(url, headers=key).status_code == 204
    finally:
        store._redis.config_set("maxmemory", 0)


def test_a_link_of_another_fleet_is_a_forgery(
    key: dict[str, str], client: FlaskClient, store: JobStore, tmp_path: Path
) -> None:
    job, _ = drawn(client, key, store, tmp_path)
    link = place(job["outputs"][0]["download_url"])
    store._redis.delete(f"{store._prefix}:link_secret")
    assert client.get(link, buffered=True).status_code == 401


def test_without_keys_the_outputs_address_is_its_link(
    client: FlaskClient, store: JobStore, tmp_path: Path
) -> None:
    job, _ = drawn(client, {}, store, tmp_path)
    (output,) = job["outputs"]
    assert output["download_url"] == output["url"] and output["url_expires_at"] is None
    assert store._redis.exists(f"{store._prefix}:link_secret") == 0


def test_pictures_by_url_need_no_key(
    key: dict[str, str], client: FlaskClient, store: JobStore, tmp_path: Path
) -> None:
    """OpenAI's callers fetch them without."""
    drawing = threading.Thread(
        target=lambda: (
            until(lambda: store.waiting("gpu", 2)) and finish(store, tmp_path / "storage")
        )
    )
    drawing.start()
    transport = httpx2.WSGITransport(client.application)
    with OpenAI(
        base_url="http://localhost/v1",
        api_key=key["Authorization"].removeprefix("Bearer "),
        max_retries=0,
        http_client=httpx2.Client(transport=transport),
    ) as theirs:
        made = theirs.images.generate(prompt="x", model="tiny-image", response_format="url")
    drawing.join()
    assert made.data and made.data[0].url
    assert client.get(place(made.data[0].url), buffered=True).content_type == "image/png"
