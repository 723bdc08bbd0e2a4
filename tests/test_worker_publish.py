"""From the spool to the storage, and what stops a job on that way."""

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cli.servers import free_port
from jobs.artifacts import ArtifactStorage
from jobs.catalog import Catalog
from jobs.errors import SpoolFailed
from jobs.record import Claim
from jobs.settings import Settings
from jobs.store import JobStore
from tests.fixtures.jobs import ask, claim
from worker.lease import CancelWished, Drain, Lease
from worker.publish import Rendered, Spool, upload


def attempt(number: int) -> Claim:
    return Claim("job_1", f"{number}:abcd", number, "{}", None, [])


def kept(spool: Spool) -> Rendered:
    """A finished job of one file."""
    spool.folder.mkdir(parents=True)
    file = spool.folder / "0.png"
    file.write_bytes(b"picture" * 1000)
    about: dict[str, Any] = {
        **{"path": str(file), "index": 0, "seed": 1, "content_type": "image/png"},
        **{"width": 8, "height": 8, "frames": 1, "fps": None, "bytes": 7000},
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    rendered = Rendered([about], {}, {})
    spool.keep(rendered)
    return rendered


def test_what_one_attempt_kept_the_next_one_finds(tmp_path: Path) -> None:
    rendered = kept(Spool(tmp_path, attempt(1)))
    assert Spool(tmp_path, attempt(2)).load() == rendered


@pytest.mark.parametrize("left", [b"", b"picture" * 999, b"pictuRe" * 1000])
def test_a_file_that_is_not_as_it_was_written_is_not_published(tmp_path: Path, left: bytes) -> None:
    rendered = kept(Spool(tmp_path, attempt(1)))
    Path(rendered.files[0]["path"]).write_bytes(left)
    assert Spool(tmp_path, attempt(2)).load() is None


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
