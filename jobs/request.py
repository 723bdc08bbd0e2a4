"""The validated question, one class a task: parsed once, the same class in the API and on a worker.

Names follow diffusers. A null is the same as silence; then the model's default holds.
"""

import difflib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from jobs.catalog import Catalog, ModelSpec, Task
from jobs.errors import InvalidRequest, ModelNotFound, Problem, UnsupportedTask

Prompt = Annotated[str, Field(min_length=1)]
Metadata = Annotated[dict[str, str | int | float | bool | None], Field(max_length=50)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Parallel(_Part):
    """An explicit plan: the product of the degrees is the number of ranks that the job runs on."""

    data: int = Field(1, ge=1)
    cfg: int = Field(1, ge=1, le=2)
    ulysses: int = Field(1, ge=1)
    ring: int = Field(1, ge=1)

    @property
    def width(self) -> int:
        return self.data * self.cfg * self.ulysses * self.ring

    def refused_by(self, ranks: int) -> str | None:
        """Why a group of `ranks` ranks can't run it, as a sentence; None if it can."""
        if self.width > ranks:
            return f"The plan takes {self.width} ranks; a group here has {ranks}."
        replica = self.width // self.data
        if ranks % replica:
            return f"{replica} ranks for one output do not divide a group of {ranks}."
        return None


class _Input(_Part):
    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1)]
    negative_prompt: str | None = None
    n: int = Field(1, ge=1)
    seed: int = Field(ge=0, lt=2**53)
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    num_inference_steps: int = Field(ge=1)
    guidance_scale: float = Field(ge=0, le=100)


class ImageInput(_Input):
    @property
    def frames(self) -> int:
        return 1


class VideoInput(_Input):
    num_frames: int = Field(ge=1)
    fps: int = Field(ge=1, le=120)

    @property
    def frames(self) -> int:
        return self.num_frames


class ImageOutput(_Part):
    format: Literal["png", "webp"] = "png"


class VideoOutput(_Part):
    format: Literal["mp4"] = "mp4"


@dataclass(frozen=True)
class Item:
    """One picture or one video of a job; the unit that the data plan deals to ranks."""

    index: int
    prompt: str
    seed: int


class _Request(_Part):
    model: str
    parallel: Literal["auto"] | Parallel = "auto"
    priority: Literal["high", "normal", "low"] = "normal"
    deadline_s: float | None = Field(None, gt=0, le=30 * 86400)
    metadata: Metadata = {}


class TextToImage(_Request):
    task: Literal["text-to-image"]
    input: ImageInput
    output: ImageOutput = ImageOutput()


class TextToVideo(_Request):
    task: Literal["text-to-video"]
    input: VideoInput
    output: VideoOutput = VideoOutput()


JobRequest = TextToImage | TextToVideo
REQUESTS: dict[Task, type[TextToImage] | type[TextToVideo]] = {
    "text-to-image": TextToImage,
    "text-to-video": TextToVideo,
}
_STORED: TypeAdapter[JobRequest] = TypeAdapter(Annotated[JobRequest, Field(discriminator="task")])


def stored_request(text: str) -> JobRequest:
    """The inverse of request.model_dump_json()."""
    return _STORED.validate_json(text)


def input_schema(task: Task) -> dict[str, Any]:
    """JSON schema of `input`; the model's limits come on top."""
    return REQUESTS[task].model_fields["input"].annotation.model_json_schema()  # type: ignore


def items(request: JobRequest) -> list[Item]:
    """prompts x n, each with its own seed: seed, seed+1, …"""
    prompt = request.input.prompt
    prompts = [prompt] if isinstance(prompt, str) else prompt
    repeated = [text for text in prompts for _ in range(request.input.n)]
    return [Item(i, text, request.input.seed + i) for i, text in enumerate(repeated)]


def parse_request(body: Any, catalog: Catalog) -> tuple[JobRequest, list[str]]:
    """body: the caller's JSON. Answers the request with every default filled in, and warnings.

    Raises: InvalidRequest, ModelNotFound or UnsupportedTask, with a pointer for each problem.
    """
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.", Problem("", "type", "no object"))
    spec = _model(body, catalog)
    task = _task(body, spec)
    filled, warnings = _fill(body, spec, task)
    try:
        request = REQUESTS[task].model_validate(filled)
    except ValidationError as error:
        raise _refusal([_problem(e, filled, REQUESTS[task]) for e in error.errors()]) from None
    problems = [*_beyond_limits(spec, request), *_impossible_plan(spec, request)]
    if problems:
        raise _refusal(problems)
    return request, warnings


def _model(body: dict[str, Any], catalog: Catalog) -> ModelSpec:
    name = body.get("model")
    if not isinstance(name, str):
        raise _refusal([Problem("/model", "missing", f"Name a model: {', '.join(catalog)}.")])
    if name not in catalog:
        detail = f"There is no model {name[:80]!r}.{_did_you_mean(name, list(catalog))}"
        raise ModelNotFound(detail, Problem("/model", "model_not_found", detail))
    return catalog[name]


def _task(body: dict[str, Any], spec: ModelSpec) -> Task:
    task = body.get("task")
    if task is None:
        return spec.tasks[0]
    if task not in spec.tasks:
        detail = f"Model {spec.id} does {', '.join(spec.tasks)}, not {str(task)[:80]!r}."
        raise UnsupportedTask(detail, Problem("/task", "unsupported_task", detail))
    return cast(Task, task)


# What api.md names and no task of today takes: harmless when empty.
_EMPTY: dict[str, Any] = {"image": None, "mask": None, "strength": None, "loras": [], "extra": {}}


def _fill(body: dict[str, Any], spec: ModelSpec, task: Task) -> tuple[dict[str, Any], list[str]]:
    filled = {key: value for key, value in body.items() if value is not None}
    filled["task"] = task
    warnings = []
    if filled.pop("preview", None) is not None:
        warnings.append("preview: no preview pictures are made yet; ignored.")
    if isinstance(output := filled.get("output"), dict) and "thumbnail" in output:
        filled["output"] = {key: value for key, value in output.items() if key != "thumbnail"}
        warnings.append("output.thumbnail: no thumbnails are made yet; ignored.")
    given = filled.get("input")
    if isinstance(given, dict) and given.get("negative_prompt") and not spec.negative_prompt:
        warnings.append(f"input.negative_prompt: {spec.id} takes none; ignored.")
    if isinstance(given, dict):
        asked = {
            key: value
            for key, value in given.items()
            if value is not None and not (key in _EMPTY and value == _EMPTY[key])
        }
        known = REQUESTS[task].model_fields["input"].annotation.model_fields  # type: ignore
        defaults = {key: value for key, value in spec.defaults.items() if key in known}
        filled["input"] = {"seed": secrets.randbelow(2**32), **defaults, **asked}
    return filled, warnings


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _problem(error: Any, body: Any, kind: type[BaseModel]) -> Problem:
    """pydantic's error with a pointer into the caller's body: union tags in its path drop out."""
    pointer, here = "", body
    model: Any = kind
    for part in error["loc"]:
        inside = isinstance(here, dict) and part in here
        inside = inside or (isinstance(here, list) and isinstance(part, int) and part < len(here))
        if not inside and not (part is error["loc"][-1] and error["type"] == "missing"):
            continue
        if error["type"] == "extra_forbidden" and part is error["loc"][-1]:
            known = sorted(model.model_fields)
            detail = f"There is no field {str(part)[:80]!r} here.{_did_you_mean(part, known)}"
            return Problem(f"{pointer}/{_escape(part)}", "unknown_field", detail)
        pointer += f"/{_escape(part)}"
        here = here[part] if inside else None
        model = _inner(model, part)
    return Problem(pointer, error["type"], error["msg"] + ".")


def _inner(model: Any, field: Any) -> Any:
    """The model class inside a field, through a union such as `"auto" | Parallel`."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return model
    annotation: Any = model.model_fields[field].annotation if field in model.model_fields else None
    options = [annotation, *get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), model)


def _escape(part: Any) -> str:
    return str(part)[:80].replace("~", "~0").replace("/", "~1")


def _refusal(problems: list[Problem]) -> InvalidRequest:
    # A misspelt field first: what else is wrong often follows from it.
    unique = sorted(dict.fromkeys(problems), key=lambda p: p.code != "unknown_field")
    return InvalidRequest(" ".join(f"{p.pointer}: {p.detail}" for p in unique[:3]), *unique[:20])


def _beyond_limits(spec: ModelSpec, request: JobRequest) -> list[Problem]:
    limits, asked = spec.limits, request.input
    problems = []

    def refuse(field: str, detail: str) -> None:
        problems.append(Problem(f"/input/{field}", "limit", detail))

    for field, side in (("width", asked.width), ("height", asked.height)):
        if side % limits.side_step or not limits.min_side <= side <= limits.max_side:
            refuse(
                field,
                f"{side} is no multiple of {limits.side_step} "
                f"between {limits.min_side} and {limits.max_side}.",
            )
    if asked.width * asked.height > limits.max_pixels:
        size = f"{asked.width}x{asked.height}"
        refuse("width", f"{size} is more than the model's {limits.max_pixels} pixels.")
    if (asked.frames - 1) % limits.frames_step or asked.frames > limits.max_frames:
        refuse(
            "num_frames",
            f"{asked.frames} is not 1 + a multiple of {limits.frames_step}, "
            f"at most {limits.max_frames}.",
        )
    if asked.num_inference_steps > limits.max_steps:
        refuse("num_inference_steps", f"At most {limits.max_steps} steps.")
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if len(prompts) * asked.n > limits.max_outputs:
        refuse("n", f"{len(prompts)} x {asked.n} outputs; at most {limits.max_outputs}.")
    texts = {"prompt": prompts, "negative_prompt": [asked.negative_prompt or ""]}
    for field, values in texts.items():
        if max(map(len, values)) > limits.max_prompt_chars:
            refuse(field, f"A prompt has at most {limits.max_prompt_chars} characters.")
    return problems


def _impossible_plan(spec: ModelSpec, request: JobRequest) -> list[Problem]:
    plan, asked = request.parallel, request.input
    if not isinstance(plan, Parallel):
        return []
    problems = []
    if plan.ring > 1:
        problems.append(Problem("/parallel/ring", "plan", "ring must be 1 for now."))
    if plan.cfg > 1 and not spec.guides(asked.guidance_scale):
        detail = f"There is one pass a step here: {spec.id}, guidance {asked.guidance_scale:g}."
        problems.append(Problem("/parallel/cfg", "plan", detail))
    counts = spec.shape.token_counts(asked.width, asked.height, asked.frames)
    if reason := spec.shape.refuses(plan.ulysses, counts):
        problems.append(Problem("/parallel/ulysses", "plan", reason))
    return problems
