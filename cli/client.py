"""The REST API from Python: what the commands speak, and what a script may use. No torch."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

FINAL = {"succeeded", "failed", "canceled", "expired"}


class ApiError(Exception):
    """status: 0 where no answer came."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.code = status, code


class Client:
    """Every method raises ApiError."""

    def __init__(self, url: str, timeout_s: float = 90) -> None:
        self._url = url
        self._http = httpx.Client(base_url=url, timeout=timeout_s)

    def close(self) -> None:
        self._http.close()

    def call(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ApiError(0, "unreachable", f"{self._url} does not answer: {error}") from None
        if response.is_error:
            raise _api_error(response)
        return response.json() if response.content else None

    def submit(self, body: dict[str, Any]) -> dict[str, Any]:
        job: dict[str, Any] = self.call("POST", "/v1/jobs", json=body)
        return job

    def job(self, id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.call("GET", f"/v1/jobs/{id}")
        return job

    def health(self) -> dict[str, Any]:
        """/readyz, which speaks of what fails with HTTP 503."""
        try:
            health: dict[str, Any] = self._http.get("/readyz").json()
        except (httpx.HTTPError, ValueError) as error:
            raise ApiError(0, "unreachable", f"{self._url} does not answer: {error}") from None
        return health

    def follow(self, id: str, every_s: float = 0.3) -> Iterator[dict[str, Any]]:
        """The job, again and again, until it is final; an API away for a minute is no end."""
        away = 0
        while True:
            try:
                job = self.job(id)
                away = 0
            except ApiError as error:
                away += 1
                if error.status not in (0, 502, 503) or away > 60:
                    raise
                time.sleep(1)
                continue
            yield job
            if job["status"] in FINAL:
                return
            time.sleep(every_s)

    def download(self, url: str, path: Path) -> None:
        try:
            with httpx.stream("GET", url, follow_redirects=True, timeout=300) as response:
                if response.is_error:
                    response.read()
                    raise _api_error(response)
                with path.open("wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)
        except httpx.HTTPError as error:
            raise ApiError(0, "unreachable", f"{url} does not answer: {error}") from None
        except OSError as error:
            raise ApiError(0, "not_written", f"{path}: {error.strerror}") from None


def _api_error(response: httpx.Response) -> ApiError:
    try:
        body = response.json()
        return ApiError(response.status_code, body["code"], body["detail"])
    except (ValueError, KeyError, TypeError):
        return ApiError(response.status_code, "unknown", f"HTTP {response.status_code}")
