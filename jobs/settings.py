"""Every environment variable, read once into one frozen dataclass. `.env.example` lists them."""

import base64
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs.errors import SettingsError

CLIENT_ONLY = {
    "FLEET_URL",
    "FLEET_API_KEY",
}  # read by the command line, which imports nothing of this

CATALOG = Path(__file__).with_name("models.toml")
DATA_DIR = Path("~/.local/share/diffusion-fleet").expanduser()

Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Settings:
    redis_url: str = "redis://127.0.0.1:6379/0"
    key_prefix: str = "fleet"
    data_dir: Path = DATA_DIR
    storage_url: str = (DATA_DIR / "storage").as_uri()
    s3_endpoint: str | None = None
    s3_public_endpoint: str | None = None  # what clients see, where it differs from the above
    link_s: int = 3600
    models: Path = CATALOG
    models_dir: Path = DATA_DIR / "models"
    ranks: int | None = None  # None: the GPUs of the node, or 2 on CPU
    visible_gpus: int | None = None  # where CUDA_VISIBLE_DEVICES narrows them
    lease_s: float = 30
    reap_s: float = 3
    preload: tuple[str, ...] = ()  # models that are loaded and warm before the worker takes jobs
    stall_s: float = 60
    load_timeout_s: float = 1800
    stage_timeout_s: float = 600
    start_timeout_s: float = 300
    drain_s: float = 600
    gpu_faults: int = 2  # jobs that a GPU may fail in ten minutes before the worker drains; 0: any
    recycle_jobs: int = 0  # after which a group's ranks are started anew; 0: never
    recycle_growth_bytes: int = 0  # the same for the growth of their processes
    deaf_s: float = 60  # that a worker may be idle while jobs wait
    embed_parameters: bool = True  # a file carries the request that made it
    embed_provenance: bool = True  # and says that a model drew it
    debug: bool = False  # ranks compare their latents at every step
    max_queued: int = 100_000  # jobs; more are refused
    max_queued_per_tenant: int = 10_000
    spool_free_bytes: int = 2_000_000_000  # a worker with less takes no jobs
    max_streams: int = 200  # that one web process keeps open, and waits: below its threads
    api_keys_file: Path | None = None  # None: no keys, and loopback only
    public_url: str | None = None  # None: links lead to where the request came in
    api_open: bool = False  # without keys, and not on loopback only
    rate_per_minute: int = 0  # requests of a tenant whose key says nothing else; 0: any
    max_wait_s: int = 60  # cap of `Prefer: wait`
    openai_wait_s: int = 590  # for the pictures that an OpenAI client waits for
    max_body_bytes: int = 20_000_000
    fetch_http: bool = False  # URLs from outside may begin with http://
    fetch_private: tuple[Network, ...] = ()  # they may lead there too
    metrics_token: str | None = field(default=None, repr=False)  # None: /metrics on loopback only
    webhook_secret: bytes | None = field(default=None, repr=False)  # None: there are no webhooks

    @property
    def spool(self) -> Path:
        """Where a rank leaves finished files until they are uploaded."""
        return self.data_dir / "spool"

    @property
    def logs(self) -> Path:
        return self.data_dir / "logs"


def _number(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(f"is no {'whole ' if kind is int else ''}number") from None
        if not low <= value <= high:
            raise ValueError(f"must lie between {low:g} and {high:g}")
        return value

    return parse


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        parts = urlsplit(text)
        if parts.scheme not in schemes:
            raise ValueError(f"must begin with {' or '.join(s + '://' for s in schemes)}")
        if parts.scheme != "file" and not parts.netloc:
            raise ValueError("names no host or bucket")
        if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
            raise ValueError("must be file:/// and an absolute path")
        return text

    return parse


def _public(text: str) -> str:
    """Of a scheme, a host, perhaps a port and a prefix; without the last slash."""
    _url("http", "https")(text)
    parts = urlsplit(text)
    odd = parts.query or parts.fragment or "@" in parts.netloc or not parts.hostname
    if odd or not re.fullmatch(r"[A-Za-z0-9._~:\[\]-]+", parts.netloc):
        raise ValueError("must be like https://fleet.example.com or https://example.com/fleet")
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", parts.path) or "/." in parts.path:
        raise ValueError("has a path that is no prefix such as /fleet")
    _ = parts.port  # raises, where it is none
    return text.rstrip("/")


def _redis(text: str) -> str:
    _url("redis", "rediss")(text)
    database = urlsplit(text).path.strip("/")
    if database and not database.isdecimal():
        raise ValueError("must end in a database number, like redis://host:6379/0")
    return text


def _word(text: str) -> str:
    if not text.replace("-", "").replace("_", "").isalnum():
        raise ValueError("may hold letters, digits, '-' and '_' only")
    return text


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("must be 0 or 1")
    return text == "1"


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ip_network(word) for word in _words(text))
    except ValueError as error:
        raise ValueError(f"must hold networks such as 10.1.0.0/16, with commas: {error}") from None


def _secret(text: str) -> bytes:
    """As Standard Webhooks writes one: whsec_ and the base64 of 24 to 64 bytes."""
    try:
        secret = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        secret = b""
    if not text.startswith("whsec_") or not 24 <= len(secret) <= 64:
        raise ValueError("must be whsec_ and the base64 of 24 to 64 bytes")
    return secret


def _token(text: str) -> str:
    if len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must have at least 16 printable characters, none of them a blank")
    return text


def _absolute(text: str) -> Path:
    return Path(text).expanduser().absolute()


VARIABLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "FLEET_REDIS_URL": ("redis_url", _redis),
    "FLEET_KEY_PREFIX": ("key_prefix", _word),
    "FLEET_DATA_DIR": ("data_dir", _absolute),
    "FLEET_STORAGE_URL": ("storage_url", _url("file", "s3", "gs", "az")),
    "FLEET_S3_ENDPOINT": ("s3_endpoint", _url("http", "https")),
    "FLEET_S3_PUBLIC_ENDPOINT": ("s3_public_endpoint", _url("http", "https")),
    "FLEET_LINK_S": ("link_s", _number(int, 1, 604800)),
    "FLEET_MODELS": ("models", _absolute),
    "FLEET_MODELS_DIR": ("models_dir", _absolute),
    "FLEET_PRELOAD": ("preload", _words),
    "FLEET_RANKS": ("ranks", _number(int, 1, 64)),
    "FLEET_LEASE_S": ("lease_s", _number(float, 1, 3600)),
    "FLEET_REAP_S": ("reap_s", _number(float, 0.1, 60)),
    "FLEET_STALL_S": ("stall_s", _number(float, 1, 86400)),
    "FLEET_LOAD_TIMEOUT_S": ("load_timeout_s", _number(float, 1, 86400)),
    "FLEET_STAGE_TIMEOUT_S": ("stage_timeout_s", _number(float, 1, 86400)),
    "FLEET_START_TIMEOUT_S": ("start_timeout_s", _number(float, 1, 86400)),
    "FLEET_DRAIN_S": ("drain_s", _number(float, 0, 86400)),
    "FLEET_GPU_FAULTS": ("gpu_faults", _number(int, 0, 1000)),
    "FLEET_RECYCLE_JOBS": ("recycle_jobs", _number(int, 0, 10_000_000)),
    "FLEET_RECYCLE_GROWTH_BYTES": ("recycle_growth_bytes", _number(int, 0, 2**60)),
    "FLEET_DEAF_S": ("deaf_s", _number(float, 1, 86400)),
    "FLEET_EMBED_PARAMETERS": ("embed_parameters", _switch),
    "FLEET_EMBED_PROVENANCE": ("embed_provenance", _switch),
    "FLEET_DEBUG": ("debug", _switch),
    "FLEET_MAX_QUEUED": ("max_queued", _number(int, 1, 10_000_000)),
    "FLEET_MAX_QUEUED_PER_TENANT": ("max_queued_per_tenant", _number(int, 1, 10_000_000)),
    "FLEET_SPOOL_FREE_BYTES": ("spool_free_bytes", _number(int, 0, 2**60)),
    "FLEET_MAX_STREAMS": ("max_streams", _number(int, 1, 10_000)),
    "FLEET_API_KEYS_FILE": ("api_keys_file", _absolute),
    "FLEET_PUBLIC_URL": ("public_url", _public),
    "FLEET_API_OPEN": ("api_open", _switch),
    "FLEET_RATE_PER_MINUTE": ("rate_per_minute", _number(int, 0, 1_000_000)),
    "FLEET_MAX_WAIT_S": ("max_wait_s", _number(int, 0, 3600)),
    "FLEET_OPENAI_WAIT_S": ("openai_wait_s", _number(int, 1, 3600)),
    "FLEET_MAX_BODY_BYTES": ("max_body_bytes", _number(int, 1024, 1_000_000_000)),
    "FLEET_FETCH_HTTP": ("fetch_http", _switch),
    "FLEET_FETCH_PRIVATE": ("fetch_private", _networks),
    "FLEET_METRICS_TOKEN": ("metrics_token", _token),
    "FLEET_WEBHOOK_SECRET": ("webhook_secret", _secret),
}


def load_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads FLEET_* from `environ`; an empty value counts as unset.

    Raises: SettingsError naming the variable, for a bad value or an unknown FLEET_ name.
    """
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith("FLEET_") or name in CLIENT_ONLY or not text:
            continue
        if name not in VARIABLES:
            raise SettingsError(f"{name} is no setting of the fleet; see .env.example.")
        setting, parse = VARIABLES[name]
        try:
            values[setting] = parse(text)
        except ValueError as error:
            private = any(
                word in name for word in ("URL", "SECRET", "TOKEN")
            )  # a URL may hold a password
            shown = name if private else f"{name}={text!r}"
            raise SettingsError(f"{shown} {error}.") from None
    if (visible := environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        values["visible_gpus"] = len(list(takewhile(_is_gpu, visible.split(","))))
    if "data_dir" in values:
        values.setdefault("storage_url", (values["data_dir"] / "storage").as_uri())
        values.setdefault("models_dir", values["data_dir"] / "models")
    settings = Settings(**values)
    if settings.lease_s < 3 * settings.reap_s:
        raise SettingsError("FLEET_LEASE_S must be at least three times FLEET_REAP_S.")
    if not settings.models.is_file():
        raise SettingsError(f"FLEET_MODELS: there is no catalogue at {settings.models}.")
    return settings


def _is_gpu(text: str) -> bool:
    """CUDA itself stops at the first device that does not exist, such as -1."""
    return bool(text.strip()) and not text.strip().startswith("-")


def settings_or_exit() -> Settings:
    """For a process that starts: a bad value ends it with one sentence, not a traceback."""
    try:
        return load_settings()
    except SettingsError as error:
        raise SystemExit(str(error)) from None
