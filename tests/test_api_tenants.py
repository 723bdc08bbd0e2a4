"""Every route of /v1, by nobody, by a key without the scope, and by another tenant.

One of the two tenants is `default`, which a store takes where nobody says a tenant: a view that
forgets to say the caller's shows it to the other one, or the other one not his own.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient
from werkzeug.routing import Rule

import api
from jobs.record import Artifact, JobState
from jobs.store import JobStore
from tests.fixtures.jobs import claim
from tests.fixtures.keys import keys
from tests.fixtures.pictures import file
from tests.fixtures.receiver import SIGNED

PICTURE = file()
JOB = {"model": "tiny-image", "input": {"prompt": "x"}}
HOOKED = {**JOB, "webhook": {"url": "http://127.0.0.2:9/"}}
MADE = ("jobs.create", "batches.create", "uploads.create", "openai_videos.create")
MADE_LATE = ("openai_images.generations", "openai_images.edits")  # by nobody: 504 after a second
SHARED = ("models.list_all", "models.get", "queue.get", "workers.list_all")
LISTED = ("jobs.list_all", "jobs.dead", "queue.usage", "openai_videos.list_all")
ADMINS = ("queue.pause", "queue.resume", "workers.drain")
SECRET = "webhooks.secret"
# What a path's id is of, beside `drawn`, a job that has all that a job may have.
OF = {"jobs.cancel": "waiting", "jobs.delete": "waiting", "models": "model"}
OF.update(batches="batch", uploads="upload", openai_videos="video")
WORKER = {"start": "1", "size": 1, "models": []}
GROUP = {"ready": True, "restarts": 0, "ranks": [], "lanes": []}


@dataclass
class Tenant:
    name: str
    client: FlaskClient
    key: str
    known: dict[str, str]

    def ask(self, method: str, path: str, key: str | None = None, **options: Any) -> Any:
        key = self.key if key is None else key
        headers = options.pop("headers", {})
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return self.client.open(path, method=method, headers=headers, buffered=True, **options)

    def made(self, path: str, json: Any) -> str:
        answer = self.ask("POST", path, json=json)
        assert answer.status_code in (200, 202), answer.text
        return str(answer.json["id"])


@pytest.fixture
def tenants(
    s3_client: FlaskClient, store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tenant, Tenant]:
    """Each with his own of everything."""
    path = tmp_path / "keys.jsonl"
    for name, value in {**SIGNED, "FLEET_API_KEYS_FILE": str(path)}.items():
        monkeypatch.setenv(name, value)
    admin = keys(path, "create", "--tenant", "default", "--scope", "admin")
    other = keys(path, "create", "--tenant", "other", "--scope", "read", "--scope", "write")
    client = api.create_app().test_client()
    store.workers.announce("w1", {**WORKER, "group": GROUP}, ttl_s=600)
    found = (Tenant("default", client, admin, {}), Tenant("other", client, other, {}))
    for each in found:
        _done(each, store)
    for each in found:
        _waiting(each)
    return found


def _done(tenant: Tenant, store: JobStore) -> None:
    known, storage = tenant.known, tenant.client.application.extensions["fleet"].storage
    known["drawn"] = tenant.made("/v1/jobs", HOOKED)
    known["video"] = tenant.made("/v1/videos", {"prompt": "x"})
    for name, kind, frames in (("drawn", "image/png", 1), ("video", "video/mp4", 9)):
        key = f"results/{known[name]}/0"
        about = (64, 64, frames, 8, len(PICTURE), "ab", 1)
        for each in (key, f"{key}-small"):
            storage.put(each, PICTURE)
        made = Artifact(0, key, kind, *about, thumbnail=f"{key}-small")
        mine = claim(store)
        assert mine.id == known[name]
        store.finish(mine, JobState.SUCCEEDED, [made], {"gpu_seconds": 1})
    known["dead"] = tenant.made("/v1/jobs", JOB)
    store.finish(claim(store), JobState.FAILED, error={"code": "poisoned"}, dead=True)
    line: Any = {"at": 1.0, "attempt": 1, "rank": None, "level": "INFO", "message": "m"}
    store.logs.add(known["drawn"], [line])
    store.previews.put(known["drawn"], PICTURE)
    known["delivery"] = store.outbox.of(known["drawn"])[0].id
    known["model"] = "tiny-image"


def _waiting(tenant: Tenant) -> None:
    known = tenant.known
    known["waiting"] = tenant.made("/v1/jobs", JOB)
    known["batch"] = tenant.made("/v1/batches", {"jobs": [JOB, JOB]})
    form = {"file": (io.BytesIO(PICTURE), "x.png")}
    known["upload"] = tenant.ask("POST", "/v1/uploads", data=form).json["id"]


def routes(tenant: Tenant) -> list[tuple[str, str, str]]:
    """Endpoint, method and path of every operation on this tenant's records; the last delete."""
    found = []
    for rule in tenant.client.application.url_map.iter_rules():
        if rule.rule.startswith("/v1/"):
            path = _path(rule, tenant.known)
            found += [(rule.endpoint, method, path) for method in _methods(rule)]
    return sorted(found, key=lambda each: (each[1] == "DELETE", each))


def _methods(rule: Rule) -> set[str]:
    return (rule.methods or set()) - {"HEAD", "OPTIONS"}


def _path(rule: Rule, known: dict[str, str]) -> str:
    part = OF.get(rule.endpoint) or OF.get(rule.endpoint.partition(".")[0]) or "drawn"
    name = "w1" if rule.endpoint.startswith("workers") else "gpu"
    values = {"<id>": known[part], "<delivery>": known["delivery"], "<name>": name}
    path = rule.rule.replace("<int:index>", "0")
    for word, value in values.items():
        path = path.replace(word, value)
    assert "<" not in path, f"{path}: say what this is of"
    return path


def sent(endpoint: str) -> dict[str, Any]:
    """A request that is accepted, the same of both tenants."""
    names = {"headers": {"Idempotency-Key": "k", "X-Stainless-Retry-Count": "1"}}
    images = [(io.BytesIO(PICTURE), "x.png"), (io.BytesIO(PICTURE), "y.png")]
    bodies: dict[str, dict[str, Any]] = {
        "jobs.create": {"json": JOB},
        "batches.create": {"json": {"jobs": [JOB]}},
        "uploads.create": {"data": {"file": (io.BytesIO(PICTURE), "x.png")}},
        "openai_images.generations": {"json": {"prompt": "x"}},
        "openai_images.edits": {"data": {"prompt": "x", "image[]": images}},
        "openai_videos.create": {"json": {"prompt": "x"}},
        "openai_videos.remix": {"json": {"prompt": "y"}},
    }
    return {**bodies.get(endpoint, {}), **(names if endpoint in bodies else {})}


def state(tenant: Tenant, store: JobStore) -> Any:
    """All of his that another might have changed."""
    name, known = tenant.name, tenant.known
    jobs = [store.get(known[part], name) for part in ("drawn", "video", "dead", "waiting")]
    assert all(jobs)
    more = (store.batches.get(known["batch"], name), store.uploads.get(known["upload"], name))
    listed = {job.id for job in store.lists.page(name, limit=100)[0]}
    return jobs, more, listed, store.outbox.of(known["drawn"]), store.queues.about("gpu").paused


def test_nobody_is_told_anything(tenants: tuple[Tenant, Tenant], store: JobStore) -> None:
    owner, _ = tenants
    before = state(owner, store)
    for endpoint, method, path in routes(owner):
        for key in ("", "fleet_wrong"):
            assert owner.ask(method, path, key, **sent(endpoint)).status_code == 401, endpoint
    assert state(owner, store) == before


def test_a_key_needs_the_scope(
    tenants: tuple[Tenant, Tenant], store: JobStore, tmp_path: Path
) -> None:
    owner, _ = tenants
    words = ("create", "--tenant", "default", "--scope")
    reader, writer = (keys(tmp_path / "keys.jsonl", *words, scope) for scope in ("read", "write"))
    before = state(owner, store)
    for endpoint, method, path in routes(owner):
        for key, may in ((reader, method == "GET"), (writer, method != "GET")):
            if endpoint in ADMINS or endpoint == SECRET or not may:
                answer = owner.ask(method, path, key, **sent(endpoint))
                assert answer.status_code == 403, (endpoint, may)
    assert state(owner, store) == before


def test_another_tenant_finds_nothing(tenants: tuple[Tenant, Tenant], store: JobStore) -> None:
    for owner, other in (tenants, tenants[::-1]):
        before = state(owner, store)
        for endpoint, method, path in routes(owner):
            if endpoint in (*MADE, *MADE_LATE, *SHARED, *LISTED, *ADMINS, SECRET):
                continue
            answer = other.ask(method, path, **sent(endpoint))
            assert answer.status_code == 404, (endpoint, answer.text)
        for pictured in ({"upload": owner.known["upload"]}, {"job": owner.known["drawn"]}):
            body = {**JOB, "task": "image-to-image", "input": {"prompt": "x", "image": pictured}}
            assert other.ask("POST", "/v1/jobs", json=body).status_code == 404
        thumbnail = f"/v1/jobs/{owner.known['drawn']}/outputs/0?variant=thumbnail"
        assert other.ask("GET", thumbnail).status_code == 404
        assert other.ask("GET", f"/v1/jobs?batch_id={owner.known['batch']}").json["data"] == []
        after = other.ask(
            "GET", f"/v1/videos?order=asc&after={owner.known['video'][:-28]}{'0' * 28}"
        )
        assert owner.known["video"] not in [video["id"] for video in after.json["data"]]
        assert state(owner, store) == before


def test_lists_and_secrets_are_the_tenants_own(tenants: tuple[Tenant, Tenant]) -> None:
    for path in ("/v1/jobs", "/v1/jobs/dead", "/v1/usage", "/v1/videos", "/v1/webhooks/secret"):
        said = [each.ask("GET", path).json for each in tenants]
        rows = [each.get("data", [each]) for each in said]
        names = [{row.get("id") or row.get("key") or row["secret"] for row in r} for r in rows]
        assert names[0] and names[1] and not names[0] & names[1], path
        for each, found in zip(tenants, names, strict=True):
            assert path != "/v1/jobs/dead" or found == {each.known["dead"]}


def test_what_is_new_is_the_tenants_own(tenants: tuple[Tenant, Tenant], store: JobStore) -> None:
    """Though both send the same, with the same idempotency key, and twice."""
    for endpoint, method, path in routes(tenants[0]):
        if endpoint in MADE:
            ids = [
                [each.ask(method, path, **sent(endpoint)).json["id"] for each in tenants]
                for _ in range(2)
            ]
            assert ids[0][0] != ids[0][1], endpoint
            assert endpoint == "uploads.create" or ids[0] == ids[1], endpoint
        elif endpoint in MADE_LATE:
            for each, other in (tenants, tenants[::-1]):
                before = [state(one, store)[2] for one in (each, other)]
                for _ in range(2):  # folded onto the first
                    assert each.ask(method, path, **sent(endpoint)).status_code == 504
                after = [state(one, store)[2] for one in (each, other)]
                new = 2 if endpoint == "openai_images.edits" else 1
                assert len(after[0]) == len(before[0]) + new and after[1] == before[1], endpoint


def test_every_tenant_has_all_of_his_own(tenants: tuple[Tenant, Tenant]) -> None:
    """Or the above would hold of an API that answers nobody."""
    for tenant in tenants:
        _put(tenant)
        for endpoint, method, path in routes(tenant):
            if endpoint in (*MADE_LATE, *(ADMINS if tenant.name == "other" else ())):
                continue
            answer = tenant.ask(method, path, **sent(endpoint))
            assert answer.status_code in (200, 201, 202, 204, 302), (endpoint, answer.text)
            if endpoint == "events.events":
                assert "event: snapshot" in answer.text
            if endpoint == "batches.cancel":
                assert answer.json["counts"] == {"canceled": 2}


def _put(tenant: Tenant) -> None:
    """Pictures that he has uploaded, in both ways, are there for his jobs."""
    about = {"content_type": "image/png", "bytes": len(PICTURE)}
    announced = tenant.ask("POST", "/v1/uploads", json=about).json
    assert httpx.put(announced["put_url"], content=PICTURE).status_code == 200
    for id in (announced["id"], tenant.known["upload"]):
        body = {**JOB, "task": "image-to-image", "input": {"prompt": "x", "image": {"upload": id}}}
        assert tenant.ask("POST", "/v1/jobs", json=body).status_code == 202
