"""The REST API from Python: what the commands speak, and what a script may use. No torch.

    client = Client("http://127.0.0.1:8000", key)
    job = client.run("shapes", "a red circle", seed=1)
    paths = client.download(job, ".")

What may be asked twice is tried again for `patience_s` while the API is away or says so.
"""

import contextlib
import hashlib
import json
import re
import secrets
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import httpx

from cli.errors import ApiError, Patience, refusal, silence
from cli.types import Job, Output

__all__ = ["FINAL", "ApiError", "Client"]

FINAL = {"succeeded", "failed", "canceled", "expired"}
SILENT_S = 30  # of a stream, which has a heartbeat every 10 s
POLL_S = 0.5
KEY = "Idempotency-Key"


class Client:
    """Every method raises ApiError."""

    def __init__(
        self, url: str, key: str = "", timeout_s: float = 90, patience_s: float = 60
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url, self._timeout_s, self.patience_s = url, timeout_s, patience_s
        self._http = httpx.Client(base_url=url, timeout=timeout_s, headers=headers)

    def close(self) -> None:
        self._http.close()

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Any request; the answer's JSON. A POST is tried again if it has an Idempotency-Key."""
        safe = method in ("GET", "DELETE") or KEY in (options.get("headers") or {})
        return self._call(method, path, safe, **options)

    def submit(self, body: dict[str, Any], idempotency_key: str | None = None) -> Job:
        """However often it must be sent, it is one job."""
        return self._make("/v1/jobs", idempotency_key, json=body)

    def job(self, id: str) -> Job:
        return cast(Job, self._call("GET", _path(id), True))

    def cancel(self, id: str) -> Job:
        return cast(Job, self._call("POST", f"{_path(id)}/cancel", True))

    def retry(
        self,
        id: str,
        idempotency_key: str | None = None,
        changes: dict[str, Any] | None = None,
    ) -> Job:
        """A new job that asks for the same, but for the changes, such as {"input": {"seed": 8}}."""
        asked = {"json": changes} if changes else {}
        return self._make(f"{_path(id)}/retry", idempotency_key, **asked)

    def dead(self) -> Iterator[Job]:
        """The jobs that faults ended and nobody has retried, the latest first."""
        asked: dict[str, Any] = {"limit": 100, "after": ""}
        while asked["after"] is not None:
            page = self._call("GET", "/v1/jobs/dead", True, params=asked)
            yield from page["data"]
            asked["after"] = page["next"]

    def logs(self, id: str, tail: int = 100) -> list[dict[str, Any]]:
        """The last lines that the job's attempts said, the oldest first; tail: at most 500."""
        asked = {"params": {"tail": tail}}
        lines: list[dict[str, Any]] = self._call("GET", f"{_path(id)}/logs", True, **asked)["data"]
        return lines

    def delete(self, id: str) -> None:
        self._call("DELETE", _path(id), True)

    def run(self, model: str, prompt: str | list[str], **input: Any) -> Job:
        """The job when it has ended, however it did."""
        return self.wait(self.submit({"model": model, "input": {"prompt": prompt, **input}})["id"])

    def wait(self, id: str) -> Job:
        """The job when it has ended."""
        for job in self.watch(id):
            last = job
        return last

    def models(self) -> list[dict[str, Any]]:
        return list(self._call("GET", "/v1/models", True)["data"])

    def upload(self, path: Path | str) -> str:
        """Its id, for {"image": {"upload": id}}."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ApiError(0, "not_read", f"{path}: {error.strerror}") from None
        files = {"file": ("picture", data)}
        # Twice, if the first answer was lost: what nobody uses expires.
        return str(self._call("POST", "/v1/uploads", True, files=files)["id"])

    def health(self) -> dict[str, Any]:
        """/readyz, which speaks of what fails with HTTP 503."""
        try:
            health: dict[str, Any] = self._http.get("/readyz").json()
        except (httpx.HTTPError, ValueError) as error:
            raise silence(self._url, error) from None
        return health

    def watch(self, id: str) -> Iterator[Job]:
        """The job as it is, then at every change, the last time when it has ended.

        A lost connection is taken up where it broke; where no more streams are to be had, it asks
        again and again.
        """
        patience, seen = Patience(self.patience_s), -1
        job = cast(Job, {})
        while True:
            try:
                with contextlib.closing(self._events(id, seen)) as events:
                    for event in events:
                        patience.reset()
                        if event:
                            job = cast(Job, {**job, **event})  # of progress it tells no more
                            seen = job["seq"]
                            yield job
                            if job["status"] in FINAL:
                                return
                lost = ApiError(0, "unreachable", f"The stream of {id} ended before it.", True)
            except ApiError as error:
                if error.code == "too_many_streams":
                    yield from self.follow(id, seen=seen)
                    return
                lost = error
            patience.wait(lost)

    def follow(self, id: str, every_s: float = POLL_S, seen: int = -1) -> Iterator[Job]:
        """As watch(), by asking again and again. seen: the seq that the caller knows."""
        while True:
            job = self.job(id)
            if job["seq"] != seen:
                yield job
            if job["status"] in FINAL:
                return
            seen = job["seq"]
            time.sleep(every_s)

    def download(self, job: Job, folder: Path | str) -> list[Path]:
        """Each output of the job, in the folder, which is made."""
        folder = Path(folder)
        with _written(folder):
            folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / file_name(job, output) for output in job["outputs"]]
        for path, output in zip(paths, job["outputs"], strict=True):
            self.fetch(job["id"], output, path)
        return paths

    def fetch(self, id: str, output: Output, path: Path) -> None:
        """One output. What is not what the record says leaves no file."""
        part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
        patience = Patience(self.patience_s)
        try:
            while True:
                try:
                    self._store(f"{_path(id)}/outputs/{output['index']}", output["sha256"], part)
                    break
                except ApiError as error:
                    patience.wait(error)
            with _written(path):
                part.replace(path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def _store(self, url: str, sha256: str, part: Path) -> None:
        digest = hashlib.sha256()
        # The storage's own address is another host, which httpx does not send the key.
        streamed = self._streamed(url, follow_redirects=True)
        with _written(part), part.open("wb") as file, streamed as response:
            for chunk in response.iter_bytes():
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            detail = f"{self._url}{url} is not the file of the record: its SHA-256 differs."
            raise ApiError(0, "checksum_mismatch", detail)

    def _events(self, id: str, seen: int) -> Generator[dict[str, Any] | None, None, None]:
        """The data of each event; None for a sign of life."""
        headers = {"Accept": "text/event-stream"}
        if seen >= 0:
            headers["Last-Event-ID"] = str(seen)
        timeout = httpx.Timeout(self._timeout_s, read=SILENT_S)
        path = f"{_path(id)}/events"
        with self._streamed(path, headers=headers, timeout=timeout) as response:
            fields: dict[str, str] = {}
            for line in response.iter_lines():
                name, _, value = line.partition(":")
                if not line and fields.get("event") == "deleted":
                    raise ApiError(404, "not_found", f"Job {id} has been deleted.")
                if not line and "data" in fields:
                    yield json.loads(fields["data"])
                    fields = {}
                elif name:
                    fields[name] = value.removeprefix(" ")
                elif line:
                    yield None

    @contextlib.contextmanager
    def _streamed(self, url: str, **options: Any) -> Iterator[httpx.Response]:
        try:
            with self._http.stream("GET", url, **options) as response:
                if response.is_error:
                    response.read()
                    raise refusal(response)
                yield response
        except httpx.HTTPError as error:
            raise silence(self._url, error) from None

    def _make(self, path: str, key: str | None, **options: Any) -> Job:
        headers = {KEY: key or secrets.token_hex(16)}
        return cast(Job, self._call("POST", path, True, headers=headers, **options))

    def _call(self, method: str, path: str, safe: bool, **options: Any) -> Any:
        """safe: it may be sent again."""
        patience, before = Patience(self.patience_s if safe else 0), False
        while True:
            try:
                return self._once(method, path, **options)
            except ApiError as error:
                if method == "DELETE" and before and error.status == 404:
                    return None  # the answer to the first one was lost
                before = True
                patience.wait(error)

    def _once(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise silence(self._url, error) from None
        if response.is_error:
            raise refusal(response)
        try:
            return response.json() if response.content else None
        except ValueError:
            detail = f"{self._url} answers no JSON: is it the API of a fleet?"
            raise ApiError(response.status_code, "unknown", detail) from None


def file_name(job: Job, output: Output) -> str:
    suffix = output["content_type"].rpartition("/")[2]
    return re.sub(r"[^\w.-]", "_", f"{job['id']}-{output['index']}.{suffix}")


def _path(id: str) -> str:
    return f"/v1/jobs/{quote(id, safe='')}"


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ApiError(0, "not_written", f"{path}: {error.strerror}") from None
