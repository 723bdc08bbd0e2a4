"""Keys, tenants, scopes, limits and usage, as their callers see them."""

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

import api
from cli.servers import answers, free_port
from jobs.record import Artifact, JobState
from jobs.store import JobStore
from tests.conftest import CATALOG, PYTHON, ROOT, Server, until
from tests.fixtures.jobs import claim
from tests.fixtures.keys import code, keys

JOB = {"model": "tiny-image", "input": {"prompt": "x"}}
Ask = Callable[..., TestResponse]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "keys" / "keys.jsonl"
    keys(file, "create", "--tenant", "somebody")
    monkeypatch.setenv("FLEET_API_KEYS_FILE", str(file))
    return file


@pytest.fixture
def ask(file: Path, client: FlaskClient) -> Ask:
    """ask(key, method, path, **options)"""

    def ask(key: str, method: str, path: str, **options: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return client.open(path, method=method, headers=headers, **options)

    return ask


def test_without_a_key_nothing_is_told(ask: Ask, file: Path) -> None:
    for key in ("", "fleet_wrong", keys(file, "list")[:10]):
        answer = ask(key, "GET", "/v1/jobs")
        assert code(answer) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert code(ask("", "POST", "/v1/jobs", json=JOB)) == (401, "unauthorized")
    assert ask("", "GET", "/livez").status_code == 200


def test_without_keys_no_page_from_elsewhere_may_ask(
    client: FlaskClient, store: JobStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by its visitor's browser, nor under a name of its own that leads here."""
    monkeypatch.delenv("FLEET_API_KEYS_FILE")
    for opened, named in (("0", 403), ("1", 202)):
        monkeypatch.setenv("FLEET_API_OPEN", opened)
        asked = api.create_app().test_client()
        for headers, status in (
            ({"Host": "localhost:8000"}, 202),
            ({"Host": "[::1]:8000", "Origin": "http://localhost:3000"}, 202),
            ({"Host": "127.0.0.1"}, 202),
            ({"Host": "other.example"}, named),
            ({"Host": "other.example", "Origin": "http://other.example:3000"}, named),
            ({"Host": "[:"}, named),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "http://["}, 403),
            ({"Origin": "null"}, 403),
        ):
            answer = asked.post("/v1/jobs", json=JOB, headers=headers)
            assert answer.status_code == status, (headers, answer.json)
    monkeypatch.delenv("FLEET_API_OPEN")
    monkeypatch.setenv("FLEET_PUBLIC_URL", "https://fleet.example")
    asked = api.create_app().test_client()
    for origin, status in (("https://fleet.example", 202), ("https://evil.example", 403)):
        answer = asked.post("/v1/jobs", json=JOB, headers={"Origin": origin})
        assert answer.status_code == status


def test_a_key_may_what_its_scopes_say(ask: Ask, file: Path) -> None:
    def key(*scopes: str) -> str:
        words = [word for scope in scopes for word in ("--scope", scope)]
        return keys(file, "create", "--tenant", "a", *words)

    reader, writer, operator = key("read"), key("write"), key("admin")
    assert ask(reader, "GET", "/v1/jobs").status_code == 200
    assert code(ask(reader, "POST", "/v1/jobs", json=JOB)) == (403, "forbidden")
    assert ask(writer, "POST", "/v1/jobs", json=JOB).status_code == 202
    assert code(ask(writer, "GET", "/v1/jobs")) == (403, "forbidden")
    for path in ("/v1/queue/gpu/pause", "/v1/workers/w/drain"):
        assert code(ask(writer, "POST", path)) == (403, "forbidden")
    assert ask(operator, "POST", "/v1/queue/gpu/pause").json["paused"]  # type: ignore[index]
    assert ask(operator, "GET", "/v1/queue").json["data"][0]["waiting"] == 1  # type: ignore[index]
    assert not ask(operator, "POST", "/v1/queue/gpu/resume").json["paused"]  # type: ignore[index]


def test_a_job_is_seen_by_its_tenant_alone(ask: Ask, file: Path) -> None:
    mine, ours, theirs = (keys(file, "create", "--tenant", name) for name in ("a", "a", "b"))
    job: Any = ask(mine, "POST", "/v1/jobs", json=JOB).json
    batch: Any = ask(mine, "POST", "/v1/batches", json={"jobs": [JOB]}).json
    id = job["id"]
    assert ask(ours, "GET", f"/v1/jobs/{id}").status_code == 200
    for method, path in (
        ("GET", f"/v1/jobs/{id}"),
        ("GET", f"/v1/jobs/{id}/events"),
        ("GET", f"/v1/jobs/{id}/outputs/0"),
        ("POST", f"/v1/jobs/{id}/cancel"),
        ("POST", f"/v1/jobs/{id}/retry"),
        ("DELETE", f"/v1/jobs/{id}"),
        ("GET", f"/v1/batches/{batch['id']}"),
        ("POST", f"/v1/batches/{batch['id']}/cancel"),
    ):
        assert code(ask(theirs, method, path)) == (404, "not_found"), path
    listed: Any = ask(theirs, "GET", f"/v1/jobs?batch_id={batch['id']}").json
    assert listed["data"] == []
    assert ask(mine, "GET", f"/v1/jobs/{id}").json["status"] == "queued"  # type: ignore[index]


def test_an_idempotency_key_is_the_tenants_own(file: Path, client: FlaskClient) -> None:
    ids = set()
    for tenant in ("a", "b"):
        key = keys(file, "create", "--tenant", tenant)
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "1"}
        answer: Any = client.post("/v1/jobs", json=JOB, headers=headers)
        ids.add(answer.json["id"])
    assert len(ids) == 2


def test_a_revoked_key_is_refused_from_then_on(ask: Ask, file: Path) -> None:
    key = keys(file, "create", "--tenant", "a")
    assert ask(key, "GET", "/v1/jobs").status_code == 200
    line = json.loads(file.read_text().splitlines()[-1])
    assert key not in file.read_text() and file.stat().st_mode & 0o777 == 0o600
    keys(file, "revoke", line["id"])
    assert file.stat().st_mode & 0o777 == 0o600, "as it was"
    assert code(ask(key, "GET", "/v1/jobs")) == (401, "unauthorized")
    assert f"{line['id']}  a" in keys(file, "list") and "revoked" in keys(file, "list")
    other = keys(file, "create", "--tenant", "a")
    file.write_text(file.read_text() + "half a li")
    assert ask(other, "GET", "/v1/jobs").status_code in (200, 401), "a broken file is no 500"


def test_so_many_requests_a_minute(ask: Ask, file: Path) -> None:
    key = keys(file, "create", "--tenant", "a", "--per-minute", "3")
    left = []
    for _ in range(4):
        answer = ask(key, "GET", "/v1/models")
        left.append(answer.headers["RateLimit-Remaining"])
        if answer.status_code == 429:
            break
    assert code(answer) == (429, "rate_limited")
    assert left in (["2", "1", "0", "0"], ["2", "1", "0", "2"]), "the minute may have turned"
    assert answer.headers["RateLimit-Limit"] == "3"
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    other = keys(file, "create", "--tenant", "b", "--per-minute", "3")
    assert ask(other, "GET", "/v1/models").status_code == 200


def test_so_many_jobs_at_once(ask: Ask, file: Path, store: JobStore) -> None:
    key = keys(file, "create", "--tenant", "a", "--active-jobs", "2")
    assert [ask(key, "POST", "/v1/jobs", json=JOB).status_code for _ in range(2)] == [202, 202]
    assert code(ask(key, "POST", "/v1/jobs", json=JOB)) == (429, "concurrency_limited")
    batch = {"jobs": [JOB] * 2}
    assert code(ask(key, "POST", "/v1/batches", json=batch)) == (429, "concurrency_limited")
    mine = claim(store)
    assert code(ask(key, "POST", "/v1/jobs", json=JOB)) == (429, "concurrency_limited"), "it runs"
    store.finish(mine, JobState.SUCCEEDED)
    assert ask(key, "POST", "/v1/jobs", json=JOB).status_code == 202


def test_one_key_can_not_take_every_stream(ask: Ask, file: Path) -> None:
    """FLEET_MAX_STREAMS is 2 here, so that a tenant has one."""
    a, b = (keys(file, "create", "--tenant", name) for name in ("a", "b"))
    ids = {key: ask(key, "POST", "/v1/jobs", json=JOB).json["id"] for key in (a, b)}  # type: ignore[index]
    with ask(a, "GET", f"/v1/jobs/{ids[a]}/events", buffered=False) as first:
        assert first.status_code == 200
        assert code(ask(a, "GET", f"/v1/jobs/{ids[a]}/events")) == (429, "too_many_streams")
        with ask(b, "GET", f"/v1/jobs/{ids[b]}/events", buffered=False) as other:
            assert other.status_code == 200
    with ask(a, "GET", f"/v1/jobs/{ids[a]}/events", buffered=False) as again:
        assert again.status_code == 200, "it was given back"


def test_usage_and_the_days_gpu_seconds(ask: Ask, file: Path, store: JobStore) -> None:
    key = keys(file, "create", "--tenant", "a", "--gpu-seconds-per-day", "10")
    for state, made, gpu_s in (
        (JobState.SUCCEEDED, [(1, None), (25, 10)], 6.5),
        (JobState.CANCELED, [], 4.0),
    ):
        assert ask(key, "POST", "/v1/jobs", json=JOB).status_code == 202
        about = ("image/png", 8, 8)
        artifacts = [Artifact(0, "k", *about, *each, 1, "0", 1) for each in made]
        store.finish(claim(store), state, artifacts, {"gpu_seconds": gpu_s})
    refused = ask(key, "POST", "/v1/jobs", json=JOB)
    assert code(refused) == (429, "quota_exceeded")
    assert 0 < int(refused.headers["Retry-After"]) <= 86400
    (row,) = ask(key, "GET", "/v1/usage").json["data"]  # type: ignore[index]
    assert row.pop("key").startswith("key_") and row.pop("day")
    assert row == {"jobs": 1, "images": 1, "video_seconds": 2.5, "gpu_seconds": 10.5}
    assert ask(key, "GET", "/v1/usage?days=0").status_code == 422


def test_without_keys_the_api_does_not_listen_beyond_loopback(
    valkey: Server, tmp_path: Path
) -> None:
    own = {"FLEET_REDIS_URL": valkey.url, "FLEET_DATA_DIR": str(tmp_path)}

    def started(address: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PYTHON, "-m", "gunicorn", "api:create_app()", "--bind", address],
            env={**os.environ, **own, **more, "FLEET_MODELS": str(CATALOG)},
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    late = started(f"0.0.0.0:{(port := free_port())}", GUNICORN_CMD_ARGS="--preload")
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/livez", lambda r: r.status_code == 200))
        here = socket.gethostbyname(socket.gethostname())
        asked = httpx.get(f"http://{here}:{port}/v1/jobs")
        loopback = here.startswith("127.")
        assert asked.status_code == (200 if loopback else 403)
    finally:
        late.terminate()
        late.communicate(timeout=60)
    refused = started(f"0.0.0.0:{free_port()}")
    _, said = refused.communicate(timeout=60)
    assert refused.returncode == api.GUNICORN_GIVES_UP
    assert "listens on loopback, not on 0.0.0.0" in said and "Traceback" not in said
    port = free_port()
    allowed = started(f"0.0.0.0:{port}", FLEET_API_OPEN="1")
    try:
        url = f"http://127.0.0.1:{port}/livez"
        until(lambda: answers(url, lambda response: response.status_code == 200))
    finally:
        allowed.terminate()
        allowed.communicate(timeout=60)


def test_a_file_of_keys_that_is_none_stops_the_api(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in (None, '{"id": "k"}\n', "no json\n"):
        file = tmp_path / "keys"
        if text is not None:
            file.write_text(text)
        monkeypatch.setenv("FLEET_API_KEYS_FILE", str(file))
        with pytest.raises(SystemExit):
            api.create_app()
        assert "FLEET_API_KEYS_FILE" in capsys.readouterr().err
