"""ArtifactStorage: files by key in a folder, S3, or what else obstore speaks, named by one URL."""

import functools
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, S3Store, from_url

from jobs.errors import SettingsError, StorageUnavailable
from jobs.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")

# A slow storage must not hold the caller for minutes: what is worth repeating is repeated by him.
_CLIENT: Any = {"connect_timeout": timedelta(seconds=2), "timeout": timedelta(minutes=5)}
_RETRY: Any = {"max_retries": 1, "retry_timeout": timedelta(seconds=5)}


def _away(call: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(call)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except (AlreadyExistsError, NotFoundError, FileNotFoundError):
            raise
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
        self._folder = Path(urlsplit(url).path) if url.startswith("file:") else None
        self._links: Any = None
        self._link_s = settings.link_s
        try:
            if self._folder:
                self._store: Any = LocalStore(self._folder, mkdir=True, automatic_cleanup=True)
            elif url.startswith("s3:"):
                self._store = self._s3(url, settings.s3_endpoint)
                self._links = self._s3(url, settings.s3_public_endpoint or settings.s3_endpoint)
            else:
                self._store = from_url(url, client_options=_CLIENT, retry_config=_RETRY)
                self._links = self._store
        except (BaseError, OSError) as error:
            raise SettingsError(f"FLEET_STORAGE_URL={url} can't be used: {error}.") from None

    @staticmethod
    def _s3(url: str, endpoint: str | None) -> S3Store:
        config: Any = {"endpoint": endpoint} if endpoint else {}
        client = {**_CLIENT, "allow_http": bool(endpoint and endpoint.startswith("http:"))}
        return S3Store.from_url(
            url, config=config, client_options=cast(Any, client), retry_config=_RETRY
        )

    @_away
    def put(self, key: str, path: Path) -> None:
        obstore.put(self._store, key, path)

    @_away
    def commit(self, key: str, data: bytes) -> bool:
        """Creates the object; False, and nothing written, if it is there already."""
        try:
            obstore.put(self._store, key, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    @_away
    def read(self, key: str) -> bytes | None:
        try:
            return bytes(obstore.get(self._store, key).bytes())
        except (NotFoundError, FileNotFoundError):
            return None

    def path(self, key: str) -> Path | None:
        """The file itself, where the storage is a folder of this machine."""
        return self._folder / key if self._folder else None

    def link(self, key: str) -> tuple[str, int] | None:
        """A signed URL for any HTTP client, and its life in seconds; None for a folder."""
        if self._links is None:
            return None
        url = obstore.sign(self._links, "GET", key, timedelta(seconds=self._link_s))
        return url, self._link_s

    @_away
    def remove(self, job: str) -> None:
        """Everything that any attempt of the job has stored; the manifest last."""
        for key in [*self._keys(f"results/{job}/"), *self._keys(f"jobs/{job}/")]:
            obstore.delete(self._store, key)

    def _keys(self, prefix: str) -> Iterator[str]:
        for page in obstore.list(self._store, prefix):
            yield from (entry["path"] for entry in page)

    @_away
    def ping(self) -> None:
        self.read("jobs/ping")
