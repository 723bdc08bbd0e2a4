"""A rendered job becomes a published one: spool -> storage -> manifest, exactly once.

The spool keeps a finished job until its manifest is written, so that a storage that is away costs
waiting, not rendering again; the next attempt on this node finds it there.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.artifacts import ArtifactStorage, manifest_key, output_key
from jobs.errors import Internal, SpoolFailed, StorageUnavailable
from jobs.record import Artifact, Claim, JobState

SPOOL_KEEP_S = 86400

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


class Voided(Exception):
    """An attempt has ended the job without a result, for good: so does whoever holds it now."""

    def __init__(self, state: JobState, error: dict[str, Any] | None, dead: bool) -> None:
        super().__init__(state)
        self.state, self.error, self.dead = state, error, dead


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
    """Whether it and its thumbnail are there as they were written: a power cut can leave less."""
    try:
        for part in (file, file.get("thumbnail")):
            if part is None:
                continue
            with open(part["path"], "rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != part["sha256"]:
                    return False
    except OSError:
        return False
    return True


def sweep_spool(spool: Path, at_work: Collection[str]) -> None:
    """Removes what was left behind a day ago, by whoever was killed or overtaken."""
    for folder in spool.glob("*"):
        with contextlib.suppress(OSError):  # it is gone by now
            old = time.time() - folder.stat().st_mtime > SPOOL_KEEP_S
            if old and folder.name not in at_work:
                shutil.rmtree(folder, ignore_errors=True)


def published(storage: ArtifactStorage, job: str) -> Published | None:
    """What an attempt before this one committed. Raises: Voided, StorageUnavailable."""
    text = storage.read(manifest_key(job))
    if text is None:
        return None
    try:
        manifest = json.loads(text)
        if not manifest.get("void"):
            return Published([Artifact(**a) for a in manifest["outputs"]], manifest["metrics"])
        verdict = Voided(JobState(manifest["state"]), manifest["error"], manifest["dead"])
    except (ValueError, KeyError, TypeError, AttributeError):
        # A power cut, or another's hand. Its place is taken: nothing is ever published there.
        error = Internal("The manifest in the storage can't be read.").answer()
        verdict = Voided(JobState.FAILED, error, True)
    raise verdict


def _first(storage: ArtifactStorage, job: str) -> Published:
    """What was there before. Raises: Voided; StorageUnavailable, where it can't be seen: S3 also
    refuses while it looks at another request for the same key."""
    if (found := published(storage, job)) is None:
        raise StorageUnavailable("The storage neither takes the manifest nor has one.")
    return found


def void(storage: ArtifactStorage, claim: Claim, verdict: Voided) -> Published | None:
    """Makes sure that the job is never published: its manifest is an empty one, which says how the
    job ends, and whoever comes later, were it a request that is still on its way, comes too late.
    Answers what an attempt had committed before. Raises: Voided, by another attempt;
    StorageUnavailable."""
    manifest = {"job": claim.id, "token": claim.token, "void": True, "outputs": [], "metrics": {}}
    manifest.update(state=verdict.state, error=verdict.error, dead=verdict.dead)
    if storage.commit(manifest_key(claim.id), json.dumps(manifest).encode()):
        return None
    return _first(storage, claim.id)


def upload(storage: ArtifactStorage, claim: Claim, rendered: Rendered) -> list[Artifact]:
    """Puts every file, and its thumbnail, at a key of this attempt's own.
    Raises: StorageUnavailable, SpoolFailed."""
    artifacts = []
    for file in rendered.files:
        path = Path(file["path"])
        if not _whole(file):  # it may have waited for long
            raise SpoolFailed("A result is gone from this node's spool, or is not as it was.")
        key = output_key(claim.id, claim.token, file["index"], path.suffix.lstrip("."))
        storage.put(key, path)
        small = None
        if thumbnail := file.get("thumbnail"):
            small = output_key(claim.id, claim.token, file["index"], "thumb.webp")
            storage.put(small, Path(thumbnail["path"]))
        about = {name: value for name, value in file.items() if name not in ("path", "thumbnail")}
        artifacts.append(Artifact(key=key, thumbnail=small, **about))
    return artifacts


def commit(
    storage: ArtifactStorage, claim: Claim, artifacts: list[Artifact], metrics: dict[str, Any]
) -> Published:
    """Creates the manifest, or answers the one that another attempt created first.
    Raises: Voided, StorageUnavailable."""
    manifest = {
        "job": claim.id,
        "token": claim.token,
        "outputs": [asdict(a) for a in artifacts],
        "metrics": metrics,
    }
    if storage.commit(manifest_key(claim.id), json.dumps(manifest).encode()):
        return Published(artifacts, metrics)
    first = _first(storage, claim.id)
    logger.warning("%s was published by another attempt; its result stands", claim.id)
    return first
