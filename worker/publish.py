"""A rendered job becomes a published one: spool -> storage -> manifest, exactly once.

The spool keeps a finished job until its manifest is written, so that a storage that is away costs
waiting, not rendering again; the next attempt on this node finds it there.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.artifacts import ArtifactStorage, manifest_key, output_key
from jobs.errors import SpoolFailed
from jobs.record import Artifact, Claim

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rendered:
    """files: what rank/outputs.py answered for each item, with its index and seed."""

    files: list[dict[str, Any]]
    metrics: dict[str, Any]
    plan: dict[str, Any]


@dataclass(frozen=True)
class Published:
    artifacts: list[Artifact]
    metrics: dict[str, Any]


class Spool:
    """The files of one job on this node's disk. folder: where this attempt's ranks write."""

    def __init__(self, root: Path, claim: Claim) -> None:
        self._job = root / claim.id
        self.folder = self._job / claim.token.replace(":", "-")
        self._list = self._job / "rendered.json"

    def load(self) -> Rendered | None:
        """What an earlier attempt on this node finished, if all of it is still here."""
        try:
            rendered = Rendered(**json.loads(self._list.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return rendered if all(map(_whole, rendered.files)) else None

    def keep(self, rendered: Rendered) -> None:
        self._job.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = self._list.with_suffix(".tmp")
        unfinished.write_text(json.dumps(asdict(rendered)))
        unfinished.rename(self._list)

    def clear(self) -> None:
        shutil.rmtree(self._job, ignore_errors=True)

    def clear_attempt(self) -> None:
        """Only what this attempt wrote, and what no other one may be publishing by now."""
        rendered = self.load()
        if rendered and any(Path(f["path"]).parent == self.folder for f in rendered.files):
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty
            self._job.rmdir()


def _whole(file: dict[str, Any]) -> bool:
    """Whether it is there as it was written: a power cut can leave less."""
    try:
        with open(file["path"], "rb") as opened:
            return bool(hashlib.file_digest(opened, "sha256").hexdigest() == file["sha256"])
    except OSError:
        return False


def published(storage: ArtifactStorage, job: str) -> Published | None:
    """What an attempt before this one committed. Raises: StorageUnavailable."""
    text = storage.read(manifest_key(job))
    if text is None:
        return None
    manifest = json.loads(text)
    return Published([Artifact(**a) for a in manifest["outputs"]], manifest["metrics"])


def upload(storage: ArtifactStorage, claim: Claim, rendered: Rendered) -> list[Artifact]:
    """Puts every file at a key of this attempt's own. Raises: StorageUnavailable, SpoolFailed."""
    artifacts = []
    for file in rendered.files:
        path = Path(file["path"])
        if not _whole(file):  # it may have waited for long
            raise SpoolFailed("A result is gone from this node's spool, or is not as it was.")
        key = output_key(claim.id, claim.token, file["index"], path.suffix.lstrip("."))
        storage.put(key, path)
        about = {name: value for name, value in file.items() if name != "path"}
        artifacts.append(Artifact(key=key, **about))
    return artifacts


def commit(
    storage: ArtifactStorage, claim: Claim, artifacts: list[Artifact], metrics: dict[str, Any]
) -> Published:
    """Creates the manifest, or answers the one that another attempt created first."""
    manifest = {
        "job": claim.id,
        "token": claim.token,
        "outputs": [asdict(a) for a in artifacts],
        "metrics": metrics,
    }
    if storage.commit(manifest_key(claim.id), json.dumps(manifest).encode()):
        return Published(artifacts, metrics)
    logger.warning("%s was published by another attempt; its result stands", claim.id)
    first = published(storage, claim.id)
    assert first is not None  # AlreadyExists said so
    return first
