"""The object storage: the same promises from a folder and from S3."""

import secrets
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.artifacts import ArtifactStorage, manifest_key, output_key
from jobs.errors import SettingsError, StorageUnavailable
from jobs.settings import Settings
from tests.conftest import Server


@pytest.fixture(params=["folder", "s3"])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ArtifactStorage:
    if request.param == "folder":
        return ArtifactStorage(Settings(storage_url=(tmp_path / "results").as_uri()))
    seaweed: Server = request.getfixturevalue("seaweed")
    for name, value in seaweed.part.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://fleet/{secrets.token_hex(4)}"
    return ArtifactStorage(Settings(storage_url=url, s3_endpoint=seaweed.url))


def test_what_is_put_can_be_read_and_linked(storage: ArtifactStorage, tmp_path: Path) -> None:
    file = tmp_path / "0.png"
    file.write_bytes(b"picture" * 1000)
    key = output_key("job_1", "1:abcd", 0, "png")
    assert key == "results/job_1/1-abcd/0.png"
    storage.put(key, file)
    assert storage.read(key) == file.read_bytes()
    assert storage.has(key) and not storage.has(f"{key}x") and not storage.has("results/job_1")
    link: Any = storage.link(key)
    if link is None:
        path = storage.path(key)
        assert path is not None and path.read_bytes() == file.read_bytes()
    else:
        url, seconds = link
        assert httpx.get(url).content == file.read_bytes() and seconds == 3600
        assert httpx.get(url.split("?")[0]).status_code == 403, "the bare object is private"


def test_a_manifest_is_committed_once(storage: ArtifactStorage) -> None:
    key = manifest_key("job_1")
    assert storage.read(key) is None
    assert storage.commit(key, b"first") is True
    assert storage.commit(key, b"second") is False
    assert storage.read(key) == b"first"


def test_remove_takes_all_of_one_job_and_nothing_else(
    storage: ArtifactStorage, tmp_path: Path
) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"x")
    keys = [output_key(job, token, 0, "png") for job in ("a", "ab") for token in ("1:x", "2:y")]
    for key in keys:
        storage.put(key, file)
    for job in ("a", "ab"):
        storage.commit(manifest_key(job), b"{}")
    storage.remove("a")
    assert storage.read(manifest_key("a")) is None and storage.read(keys[0]) is None
    assert storage.read(manifest_key("ab")) == b"{}" and storage.read(keys[2]) == b"x"
    storage.remove("a")


def test_a_storage_that_is_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    nobody = ArtifactStorage(Settings(storage_url="s3://x/y", s3_endpoint="http://127.0.0.1:1"))
    for call in (nobody.ping, lambda: nobody.commit("k", b""), lambda: nobody.remove("j")):
        with pytest.raises(StorageUnavailable):
            call()
    file = tmp_path / "in-the-way"
    file.write_text("a file, not a folder")
    with pytest.raises(SettingsError, match="can't be used"):
        ArtifactStorage(Settings(storage_url=(file / "results").as_uri()))


def test_a_missing_bucket_is_no_working_storage(
    seaweed: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweed.part.environment.items():
        monkeypatch.setenv(name, value)
    nowhere = ArtifactStorage(Settings(storage_url="s3://no-such", s3_endpoint=seaweed.url))
    with pytest.raises(StorageUnavailable):
        nowhere.ping()


def test_a_folder_with_a_blank_in_its_name(tmp_path: Path) -> None:
    storage = ArtifactStorage(Settings(storage_url=(tmp_path / "my results").as_uri()))
    storage.commit("k", b"x")
    assert (tmp_path / "my results" / "k").read_bytes() == b"x"


def test_a_public_endpoint_is_the_one_in_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    storage = ArtifactStorage(
        Settings(
            storage_url="s3://bucket/prefix",
            s3_endpoint="http://storage:8333",
            s3_public_endpoint="https://files.example.com",
        )
    )
    link = storage.link("results/a.png")
    assert link is not None
    assert link[0].startswith("https://files.example.com/bucket/prefix/results/a.png?")
