"""What the API refuses, and for how long a request is tried again."""

import random
import time
from typing import Any

import httpx

FIRST_S, LONGEST_S = 0.2, 5.0  # pauses where the answer names none
GATEWAY = (502, 503, 504)


class ApiError(Exception):
    """status: 0 where no answer came. retryable: the same request may succeed later, after
    retry_after_s if that is known. problems: pointer, code and detail of each fault of a body."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        retryable: bool = False,
        request_id: str = "",
        problems: list[dict[str, Any]] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.retryable, self.retry_after_s = retryable, retry_after_s
        self.request_id, self.problems = request_id, problems or []


class Patience:
    """With one thing: for so many seconds after its first failure it is tried again."""

    def __init__(self, total_s: float) -> None:
        self._total_s = total_s
        self.reset()

    def reset(self) -> None:
        """It goes well again."""
        self._until: float | None = None
        self._pause_s = FIRST_S

    def wait(self, error: ApiError) -> None:
        """Until the next try. Raises: the error, if there is to be none."""
        now = time.monotonic()
        self._until = self._until or now + self._total_s
        pause_s = error.retry_after_s
        if pause_s is None:
            pause_s = self._pause_s * random.uniform(0.5, 1)  # not all clients at once
            self._pause_s = min(LONGEST_S, 2 * self._pause_s)
        if not error.retryable or now + pause_s >= self._until:
            raise error
        time.sleep(pause_s)


def refusal(response: httpx.Response) -> ApiError:
    """Of an answer that is an error, read whole."""
    status, request_id = response.status_code, response.headers.get("X-Request-Id", "")
    may = response.headers.get("x-should-retry", "").lower() != "false"
    after = response.headers.get("Retry-After", "")
    after_s = float(after) if after.isdecimal() else None  # it may be a date, too
    try:
        body = response.json()
        code, detail = str(body["code"]), str(body["detail"])
        again, problems = bool(body.get("retryable")), body.get("errors")
    except (ValueError, KeyError, TypeError, AttributeError):  # of a proxy, not of the API
        code, detail, problems = "unknown", f"HTTP {status}", None
        again = status in GATEWAY
    return ApiError(status, code, detail, again and may, request_id, problems, after_s)


def silence(url: str, error: Exception) -> ApiError:
    """No answer, or half of one."""
    ours = isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError)
    again = isinstance(error, httpx.TransportError) and not ours
    return ApiError(0, "unreachable", f"{url} does not answer: {error}", again)
