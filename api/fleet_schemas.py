"""As schemas.py: what the fleet says of itself."""

from typing import Any, Literal

from typing_extensions import TypedDict


class Model(TypedDict):
    """An OpenAI model card and more. input_schema, defaults: by task. loras: what each does."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    tasks: list[str]
    input_schema: dict[str, dict[str, Any]]
    loras: dict[str, str]
    defaults: dict[str, dict[str, Any]]
    limits: dict[str, int]
    workers_ready: int
    loaded: list[str]


class Queue(TypedDict):
    """oldest_s: that the oldest job waits. estimated_wait_s: of a job that came now."""

    id: str
    object: Literal["queue"]
    waiting: int
    running: int
    oldest_s: float | None
    estimated_wait_s: float | None
    paused: bool
    workers_ready: int


class Usage(TypedDict):
    """Of one key on one day, UTC."""

    day: str
    key: str
    jobs: int
    images: int
    video_seconds: float
    gpu_seconds: float


class WebhookSecret(TypedDict):
    """secret: as Standard Webhooks writes one, whsec_ and base64."""

    object: Literal["webhook_secret"]
    secret: str


class Rank(TypedDict):
    """memory: what it has allocated, and at most for this job. utilization_percent, temperature_c,
    memory_used_bytes: of its GPU as the driver says; memory also of other processes."""

    rank: int
    pid: int
    incarnation: int
    device: str
    uuid: str | None
    memory_bytes: int
    memory: dict[str, int]
    models: list[str]
    utilization_percent: int | None
    temperature_c: int | None
    memory_used_bytes: int | None


class Lane(TypedDict):
    """job: what these ranks run; None to who may not see it."""

    ranks: list[int]
    job: str | None


class Worker(TypedDict):
    """draining: why it takes no more jobs. size: how many ranks it is to have. lanes: those at
    work. heartbeat_age_s: since it was heard last."""

    id: str
    object: Literal["worker"]
    ready: bool
    draining: str | None
    size: int
    node: str
    ranks: list[Rank]
    lanes: list[Lane]
    restarts: int
    heartbeat_age_s: float
    models: list[str]
    loaded: list[str]
