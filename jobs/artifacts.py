"""ArtifactStorage: files by key in a folder, S3, or what else obstore speaks, named by one URL."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, from_url

from jobs.errors import SettingsError, StorageRefused, StorageUnavailable
from jobs.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")

# A storage that is away must not hold the caller: what is worth repeating is repeated by him.
# Whole requests: a large file may take minutes, a manifest may not, a probe still less.
FILES_S, SMALL_S, PROBE_S = 300, 10, 2
_RETRY: Any = {"max_retries": 1, "retry_timeout": timedelta(seconds=5)}


def _away(call: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(call)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
            raise StorageRefused(f"The object storage refuses: {_line(error)}") from error
        except (BaseError, OSError) as error:
            raise StorageUnavailable(
                f"The object storage does not answer: {_line(error)}"
            ) from error

    return guarded


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]


def manifest_key(job: str) -> str:
    """The commit point of a job: whoever creates this object has published."""
    return f"jobs/{job}/result.json"


def upload_key(tenant: str, id: str) -> str:
    return f"uploads/{tenant}/{id}"


def output_key(job: str, token: str, index: int, suffix: str) -> str:
    """No two attempts share a key, so a retry overwrites nothing."""
    return f"results/{job}/{token.replace(':', '-')}/{index}.{suffix}"


class ArtifactStorage:
    """Every method raises StorageUnavailable when the storage does not answer, StorageRefused when
    it does not let us."""

    def __init__(self, settings: Settings) -> None:
        """Raises: SettingsError, for a URL that can never work."""
        url = settings.storage_url
        self._folder = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else None
        self._link_s = settings.link_s
        try:
            self._files = self._open(settings, FILES_S)
            self._small = self._open(settings, SMALL_S)
            self._probe = self._open(settings, PROBE_S)
            self._links = self._open(settings, SMALL_S, settings.s3_public_endpoint)
        except (BaseError, OSError) as error:
            raise SettingsError(f"FLEET_STORAGE_URL={url} can't be used: {error}.") from None

    def _open(self, settings: Settings, timeout_s: float, endpoint: str | None = None) -> Any:
        if self._folder:
            return LocalStore(self._folder, mkdir=True, automatic_cleanup=True)
        endpoint = endpoint or settings.s3_endpoint
        client: Any = {
            "connect_timeout": timedelta(seconds=2),
            "timeout": timedelta(seconds=timeout_s),
            "allow_http": bool(endpoint and endpoint.startswith("http:")),
        }
        config: Any = {"endpoint": endpoint} if endpoint else {}
        if not settings.storage_url.startswith("s3:"):
            config = None
        return from_url(
            settings.storage_url, config=config, client_options=client, retry_config=_RETRY
        )

    @_away
    def put(self, key: str, file: Path | bytes) -> None:
        obstore.put(self._files, key, file)

    @_away
    def commit(self, key: str, data: bytes) -> bool:
        """Creates the object; False, and nothing written, if it is there already, or is just being
        created."""
        try:
            obstore.put(self._small, key, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    @_away
    def read(self, key: str, most: int | None = None) -> bytes | None:
        """Raises: ValueError with a sentence, for more than `most` bytes, which are not read."""
        try:
            found = obstore.get(self._small, key)
            if most is not None and found.meta["size"] > most:
                raise ValueError(f"It holds {found.meta['size']} bytes; at most {most}.")
            return bytes(found.bytes())
        except (NotFoundError, FileNotFoundError):
            return None

    @_away
    def has(self, key: str) -> bool:
        if self._folder:
            return (self._folder / key).is_file()
        try:
            obstore.head(self._small, key)
        except (NotFoundError, FileNotFoundError):
            return False
        return True

    @_away
    def stream(self, key: str) -> Iterator[bytes]:
        """Its bytes, piece by piece. What fails between two of them ends the pieces."""
        return map(bytes, obstore.get(self._files, key).stream())

    @_away
    def delete(self, key: str) -> None:
        """Nothing happens where it is gone already."""
        with contextlib.suppress(NotFoundError, FileNotFoundError):
            obstore.delete(self._small, key)

    def path(self, key: str) -> Path | None:
        """The file itself, where the storage is a folder of this machine."""
        return self._folder / key if self._folder else None

    @_away
    def link(self, key: str, method: Literal["GET", "HEAD"] = "GET") -> tuple[str, int] | None:
        """A signed URL for any HTTP client, and its life in seconds; None for a folder."""
        if self._folder:
            return None
        url = obstore.sign(self._links, method, key, timedelta(seconds=self._link_s))
        return url, self._link_s

    @_away
    def put_link(self, key: str, seconds: int) -> str | None:
        """A signed URL that takes a PUT from any HTTP client; None for a folder."""
        if self._folder:
            return None
        return obstore.sign(self._links, "PUT", key, timedelta(seconds=seconds))

    @_away
    def remove(self, job: str) -> None:
        """Everything that any attempt of the job has stored; the manifest last."""
        for key in [*self._keys(f"results/{job}/"), *self._keys(f"jobs/{job}/")]:
            obstore.delete(self._small, key)

    @_away
    def sweep(self, job: str) -> None:
        """What attempts of the job have stored and its manifest does not name."""
        found = self.read(manifest_key(job)) or b""
        named: set[str | None] = set()
        # One that is broken names nothing.
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            outputs = json.loads(found)["outputs"]
            named = {output.get(kind) for output in outputs for kind in ("key", "thumbnail")}
        for key in set(self._keys(f"results/{job}/")) - named:
            obstore.delete(self._small, key)

    def _keys(self, prefix: str) -> Iterator[str]:
        for page in obstore.list(self._small, prefix):
            yield from (entry["path"] for entry in page)

    @_away
    def ping(self) -> None:
        """Lists: a missing bucket does not answer that, as it would a missing object."""
        next(iter(obstore.list(self._probe, "jobs/ping", chunk_size=1)), None)
