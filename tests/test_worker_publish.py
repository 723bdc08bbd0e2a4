"""From the spool to the storage, and what stops a job on that way."""

import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cli.servers import free_port
from jobs.artifacts import ArtifactStorage, manifest_key
from jobs.catalog import Catalog
from jobs.errors import Interrupted, LeaseLost, SpoolFailed, StorageUnavailable, StoreUnavailable
from jobs.record import Claim, JobState, job_from_hash
from jobs.settings import Settings
from jobs.store import JobStore
from tests.conftest import Server
from tests.fixtures.jobs import ask, claim
from tests.fixtures.peer import Peer
from worker.lease import CancelWished, Drain, Lease
from worker.publish import (
    Published,
    Rendered,
    Spool,
    Voided,
    commit,
    published,
    sweep_spool,
    upload,
    void,
)


def attempt(number: int) -> Claim:
    return Claim("job_1", f"{number}:abcd", number, "{}", None, [])


def kept(spool: Spool) -> Rendered:
    """A finished job of one file and its thumbnail."""
    spool.folder.mkdir(parents=True)
    file, small = spool.folder / "0.png", spool.folder / "0.thumb.webp"
    file.write_bytes(b"picture" * 1000)
    small.write_bytes(b"small")
    about: dict[str, Any] = {
        **{"path": str(file), "index": 0, "seed": 1, "content_type": "image/png"},
        **{"width": 8, "height": 8, "frames": 1, "fps": None, "bytes": 7000},
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "thumbnail": {"path": str(small), "sha256": hashlib.sha256(b"small").hexdigest()},
    }
    rendered = Rendered([about], {}, {})
    spool.keep(rendered)
    return rendered


def test_a_manifest_that_is_just_being_created_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """S3 answers 409 while another request for the key is under way: the client's own, perhaps."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "x")

    def say(_path: str) -> Iterable[bytes]:
        answer = "409 Conflict" if peer.requests[-1].startswith(b"PUT") else "404 Not Found"
        yield f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()

    with Peer(say) as peer:
        endpoint = f"http://127.0.0.2:{peer.port}"
        settings = Settings(data_dir=tmp_path, storage_url="s3://fleet", s3_endpoint=endpoint)
        storage = ArtifactStorage(settings)
        for call in (
            lambda: commit(storage, attempt(1), [], {}),
            lambda: void(storage, attempt(1), Voided(JobState.FAILED, None, False)),
        ):
            with pytest.raises(StorageUnavailable, match="neither takes"):
                call()


@pytest.mark.parametrize("text", [b"", b'{"job": "job_', b"[]", b"{}", b'{"outputs": 3}'])
def test_a_manifest_that_is_none_ends_its_job(tmp_path: Path, text: bytes) -> None:
    storage = ArtifactStorage(Settings(data_dir=tmp_path, storage_url=tmp_path.as_uri()))
    storage.put(manifest_key("job_1"), text)
    for call in (
        lambda: published(storage, "job_1"),
        lambda: commit(storage, attempt(1), [], {}),
        lambda: void(storage, attempt(1), Voided(JobState.CANCELED, None, False)),
    ):
        with pytest.raises(Voided) as verdict:
            call()
        assert verdict.value.state is JobState.FAILED and verdict.value.dead
    storage.put("results/job_1/1/0.png", b"x")
    storage.sweep("job_1")
    assert storage.read("results/job_1/1/0.png") is None


def test_what_one_attempt_kept_the_next_one_finds(tmp_path: Path) -> None:
    rendered = kept(Spool(tmp_path, attempt(1)))
    assert Spool(tmp_path, attempt(2)).load() == rendered


@pytest.mark.parametrize("left", [b"", b"picture" * 999, b"pictuRe" * 1000])
def test_a_file_that_is_not_as_it_was_written_is_not_published(tmp_path: Path, left: bytes) -> None:
    rendered = kept(Spool(tmp_path, attempt(1)))
    Path(rendered.files[0]["path"]).write_bytes(left)
    assert Spool(tmp_path, attempt(2)).load() is None


@pytest.mark.parametrize("left", [b"", b"smalL", None])
def test_nor_is_one_whose_thumbnail_is_not(tmp_path: Path, left: bytes | None) -> None:
    rendered = kept(Spool(tmp_path / "spool", attempt(1)))
    small = Path(rendered.files[0]["thumbnail"]["path"])
    if left is None:
        small.unlink()
    else:
        small.write_bytes(left)
    assert Spool(tmp_path / "spool", attempt(2)).load() is None
    storage = ArtifactStorage(Settings(storage_url=(tmp_path / "storage").as_uri()))
    with pytest.raises(SpoolFailed, match="gone"):
        upload(storage, attempt(1), rendered)


def test_file_and_thumbnail_are_stored_at_keys_of_their_attempt(tmp_path: Path) -> None:
    rendered = kept(Spool(tmp_path / "spool", attempt(2)))
    storage = ArtifactStorage(Settings(storage_url=(tmp_path / "storage").as_uri()))
    (artifact,) = upload(storage, attempt(2), rendered)
    assert artifact.key == "results/job_1/2-abcd/0.png"
    assert artifact.thumbnail == "results/job_1/2-abcd/0.thumb.webp"
    assert storage.read(artifact.key) == b"picture" * 1000
    assert storage.read(artifact.thumbnail) == b"small"
    commit(storage, attempt(2), [artifact], {})
    assert published(storage, "job_1") == Published([artifact], {})


def test_what_was_written_before_there_were_thumbnails_is_still_read(tmp_path: Path) -> None:
    """By a worker of before: its spool, its manifest and its record."""
    spool = Spool(tmp_path / "spool", attempt(1))
    rendered = kept(spool)
    del rendered.files[0]["thumbnail"]
    spool.keep(rendered)
    assert spool.load() == rendered
    storage = ArtifactStorage(Settings(storage_url=(tmp_path / "storage").as_uri()))
    (artifact,) = upload(storage, attempt(1), rendered)
    assert artifact.thumbnail is None
    before = {name: value for name, value in asdict(artifact).items() if name != "thumbnail"}
    manifest = {"job": "job_1", "token": "1:abcd", "outputs": [before], "metrics": {}}
    storage.commit(manifest_key("job_1"), json.dumps(manifest).encode())
    assert published(storage, "job_1") == Published([artifact], {})
    record = {"id": "job_1", "state": "succeeded", "seq": "1", "tenant": "t", "queue": "gpu"}
    record |= {"model": "m", "task": "t", "priority": "1", "request": "{}", "created_at": "1"}
    record |= {"ready_at": "1", "artifacts": json.dumps([before])}
    assert job_from_hash(record).artifacts == [artifact]


def test_who_lost_his_lease_leaves_what_another_attempt_may_publish(tmp_path: Path) -> None:
    first, second = (Spool(tmp_path, attempt(number)) for number in (1, 2))
    rendered = kept(first)
    first.clear_attempt()
    assert second.load() == rendered
    second.clear_attempt()
    assert second.load() == rendered
    second.clear()
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_gone_is_no_fault_of_the_storage(tmp_path: Path) -> None:
    rendered = kept(Spool(tmp_path / "spool", attempt(1)))
    Path(rendered.files[0]["path"]).write_bytes(b"less")
    storage = ArtifactStorage(Settings(storage_url=(tmp_path / "storage").as_uri()))
    with pytest.raises(SpoolFailed, match="gone"):
        upload(storage, attempt(1), rendered)


def test_nothing_is_committed_before_redis_says_that_it_is_still_wanted(
    store: JobStore, catalog: Catalog
) -> None:
    """The worker alone is cut off from Redis, and somebody cancels meanwhile."""
    store.submit(ask(catalog))
    mine = claim(store)
    lease = Lease(JobStore(f"redis://127.0.0.1:{free_port()}", "away"), mine, Drain())
    ended: list[BaseException] = []

    def confirm() -> None:
        try:
            lease.confirm({})
        except CancelWished as wish:
            ended.append(wish)

    thread = threading.Thread(target=confirm)
    thread.start()
    store.cancel(mine.id)
    time.sleep(1)
    assert thread.is_alive(), "it does not know"
    lease._store = store  # Redis is back
    thread.join(10)
    assert ended, "and does not commit"


def test_the_end_of_a_drain_ends_every_wait(store: JobStore, catalog: Catalog) -> None:
    """The storage is away between a job's last renewal and its manifest, or Redis is after it."""

    def fails() -> None:
        raise StorageUnavailable("It is away.")

    def unheard() -> None:
        raise StoreUnavailable("It is away.")

    store.submit(ask(catalog))
    drain = Drain()
    lease = Lease(store, claim(store), drain)
    drain.begin("the worker stops", budget_s=0.5)
    began = time.monotonic()
    with pytest.raises(Interrupted):
        lease.insist(fails, stoppable=False)
    with pytest.raises(LeaseLost):
        lease.persist(unheard)
    lease._store = JobStore(f"redis://127.0.0.1:{free_port()}", "away")
    with pytest.raises(Interrupted):
        lease.still_ours()
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_what_no_manifest_names_is_removed(
    tmp_path: Path, where: str, seaweed: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweed.part.environment.items():
        monkeypatch.setenv(name, value)
    url = (tmp_path / "storage").as_uri()
    if where == "s3":
        url = f"s3://fleet/{secrets.token_hex(4)}"
    storage = ArtifactStorage(Settings(storage_url=url, s3_endpoint=seaweed.url))
    made = [
        upload(storage, attempt(number), kept(Spool(tmp_path / str(number), attempt(number))))
        for number in (1, 2)
    ]
    commit(storage, attempt(2), made[1], {})
    storage.sweep("job_1")
    found = {
        key: storage.read(key) for (each,) in made for key in (each.key, each.thumbnail) if key
    }
    assert [bool(content) for content in found.values()] == [False, False, True, True]
    assert published(storage, "job_1") == Published(made[1], {})
    storage.put("results/job_2/1-abcd/0.png", b"of a canceled job")
    storage.sweep("job_2")
    assert storage.read("results/job_2/1-abcd/0.png") is None


def test_a_job_that_may_have_left_something_is_looked_at_a_day_later(
    store: JobStore, catalog: Catalog
) -> None:
    ids = [store.submit(ask(catalog))[0] for _ in range(4)]
    clean, canceled, tried = (claim(store) for _ in range(3))
    store.finish(clean, JobState.SUCCEEDED)
    store.finish(canceled, JobState.CANCELED)
    store.fail(tried, {"code": "rank_died"}, 0)
    store.finish(claim(store), JobState.SUCCEEDED)
    store.cancel(ids[3])
    assert store.upkeep.reap()[2] == []
    due = {
        id: at - time.time()
        for id, at in store._redis.zrange(store._key("sweep"), 0, -1, withscores=True)
    }
    assert set(due) == {canceled.id, tried.id} and all(86000 < at < 86500 for at in due.values())
    store._redis.zadd(store._key("sweep"), {canceled.id: 1})
    assert store.upkeep.reap()[2] == [canceled.id]
    store.upkeep.swept(canceled.id)
    assert store.upkeep.reap()[2] == []


def test_a_spool_forgets_what_nobody_looks_after(tmp_path: Path) -> None:
    for name in ("old", "busy", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"x")
    for name in ("old", "busy"):
        os.utime(tmp_path / name, (1, 1))
    sweep_spool(tmp_path, {"busy"})
    assert {entry.name for entry in tmp_path.iterdir()} == {"busy", "new"}
