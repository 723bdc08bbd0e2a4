"""Behind a proxy: every link leads to where clients come from, and nobody is taken for another."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

import api
from jobs.store import JobStore
from tests.fixtures.jobs import finish

JOB = {"model": "tiny-image", "input": {"prompt": "x"}}
PUBLIC = ["https://fleet.example.com", "https://example.com:8443/a/fleet"]


@pytest.fixture(params=PUBLIC)
def public(request: pytest.FixtureRequest) -> str:
    url: str = request.param
    return url


@pytest.fixture
def asks(public: str, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    monkeypatch.setenv("FLEET_PUBLIC_URL", f"{public}/")
    return api.create_app().test_client()


def links(node: Any) -> Iterator[str]:
    yield from re.findall(r'https?://[^\s"\'<>]+', json.dumps(node))


@pytest.mark.parametrize("left", [False, True], ids=["stripped", "left"])
def test_every_link_is_public(
    asks: FlaskClient, public: str, store: JobStore, tmp_path: Path, left: bool
) -> None:
    """left: the proxy leaves the prefix in the path."""
    prefix = re.sub("^https://[^/]+", "", public)
    base = {"base_url": "http://10.0.0.7:8000", "headers": {"X-Forwarded-Host": "evil.example"}}
    before = prefix if left else ""
    made: Any = asks.post(f"{before}/v1/jobs", json=JOB, **base)
    assert made.status_code == 202 and made.headers["Location"].startswith(f"{prefix}/v1/jobs/")
    data = finish(store, tmp_path / "storage")
    job: Any = asks.get(f"{before}/v1/jobs/{made.json['id']}", **base).json
    batch: Any = asks.post(f"{before}/v1/batches", json={"jobs": [JOB]}, **base).json
    found = [*links(job), *links(batch)]
    assert len(found) == 8 and all(link.startswith(f"{public}/v1/") for link in found)
    path = job["outputs"][0]["url"].removeprefix(public)
    assert asks.get(before + path, **base, buffered=True).data == data
    document: Any = asks.get(f"{before}/openapi.json", **base).json
    assert document["servers"] == [{"url": public}]
    page = asks.get(f"{before}/docs", **base).text
    assert f"{public}/v1/jobs" in page and "10.0.0.7" not in page


def test_who_asks_is_who_he_was(asks: FlaskClient, public: str) -> None:
    assert asks.get("/metrics").status_code == 200
    far = {"REMOTE_ADDR": "10.0.0.9"}
    assert asks.get("/metrics", environ_overrides=far).status_code == 403
    assert asks.get("/metrics", headers={"X-Forwarded-For": "10.0.0.9"}).status_code == 403


def test_a_prefix_is_no_way_past_a_key(
    public: str, client: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("")
    monkeypatch.setenv("FLEET_API_KEYS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("FLEET_PUBLIC_URL", public)
    asks, prefix = api.create_app().test_client(), re.sub("^https://[^/]+", "", public)
    for path in ("/v1/jobs", f"{prefix}/v1/jobs"):
        assert asks.get(path).status_code == 401
    assert asks.get(f"{prefix}{prefix}/v1/jobs").status_code == (404 if prefix else 401)
