"""ArtifactStorage: files by key in a folder, S3, or what else obstore speaks, named by one URL."""

import functools
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, from_url

from jobs.errors import SettingsError, StorageUnavailable
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
        except (BaseError, OSError) as error:
            line = str(error).splitlines()[0]
            raise StorageUnavailable(f"The object storage does not answer: {line}") from error

    return guarded


def manifest_key(job: str) -> str:
    """The commit point of a job: whoever creates this object has published."""
    return f"jobs/{job}/result.json"


def output_key(job: str, token: str, index: int, suffix: str) -> str:
    """No two attempts share a key, so a retry overwrites nothing."""
    return f"results/{job}/{token.replace(':', '-')}/{index}.{suffix}"


class ArtifactStorage:
    """Every method raises StorageUnavailable when the storage does not answer."""

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
    def put(self, key: str, path: Path) -> None:
        obstore.put(self._files, key, path)

    @_away
    def commit(self, key: str, data: bytes) -> bool:
        """Creates the object; False, and nothing written, if it is there already."""
        try:
            obstore.put(self._small, key, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    @_away
    def read(self, key: str) -> bytes | None:
        try:
            return bytes(obstore.get(self._small, key).bytes())
        except (NotFoundError, FileNotFoundError):
            return None

    def path(self, key: str) -> Path | None:
        """The file itself, where the storage is a folder of this machine."""
        return self._folder / key if self._folder else None

    @_away
    def link(self, key: str) -> tuple[str, int] | None:
        """A signed URL for any HTTP client, and its life in seconds; None for a folder."""
        if self._folder:
            return None
        url = obstore.sign(self._links, "GET", key, timedelta(seconds=self._link_s))
        return url, self._link_s

    @_away
    def remove(self, job: str) -> None:
        """Everything that any attempt of the job has stored; the manifest last."""
        for key in [*self._keys(f"results/{job}/"), *self._keys(f"jobs/{job}/")]:
            obstore.delete(self._small, key)

    def _keys(self, prefix: str) -> Iterator[str]:
        for page in obstore.list(self._small, prefix):
            yield from (entry["path"] for entry in page)

    @_away
    def ping(self) -> None:
        """Lists: a missing bucket does not answer that, as it would a missing object."""
        next(iter(obstore.list(self._probe, "jobs/ping", chunk_size=1)), None)
