"""From the caller's JSON to a request, or to every reason why not, each with a pointer to it.

A null is the same as silence; then the model's default holds.
"""

import difflib
import secrets
from collections.abc import Sequence
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from jobs.catalog import Catalog, ModelSpec, Task
from jobs.errors import InvalidRequest, ModelNotFound, Problem, UnsupportedTask
from jobs.images import picture
from jobs.request import REQUESTS, JobRequest, Parallel, defaults

# What pydantic says of its own classes, and of patterns, callers know nothing of.
_SAID = {
    "model_type": "Input should be an object",
    "model_attributes_type": "Input should be an object",
    "string_pattern_mismatch": "Send a URL, a data URL, an upload or another job's output",
}
MOST_PROBLEMS = 20  # that are told
MOST_FIELDS = 100  # of an object: each unknown one costs an error, and a look for what was meant


def parse_request(body: Any, catalog: Catalog) -> tuple[JobRequest, list[str]]:
    """body: the caller's JSON. Answers the request with every default filled in, and warnings.

    Raises: InvalidRequest, ModelNotFound or UnsupportedTask, with a pointer for each problem.
    """
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.", Problem("", "type", "No object."))
    _refuse_crowds(body)
    spec = _model(body, catalog)
    task = _task(body, spec)
    filled, warnings = _fill(body, spec, task)
    try:
        request = REQUESTS[task].model_validate(filled)
    except ValidationError as error:
        raise _refusal([_problem(e, filled, REQUESTS[task]) for e in error.errors()]) from None
    problems = [
        *_beyond_limits(spec, request),
        *_not_the_models_own(spec, request),
        *_impossible_plan(spec, request),
        *_unreadable(request),
    ]
    if problems:
        raise _refusal(problems)
    return request, warnings


def _refuse_crowds(body: dict[str, Any]) -> None:
    parts: list[tuple[str, Any]] = [("", body)]
    while parts:
        pointer, part = parts.pop()
        if isinstance(part, dict):
            if len(part) > MOST_FIELDS:
                detail = f"An object has at most {MOST_FIELDS} fields; here are {len(part)}."
                raise _refusal([Problem(pointer, "too_many_fields", detail)])
            parts += [(pointer + pointer_to(name), inner) for name, inner in part.items()]
        elif isinstance(part, list):
            parts += [(pointer, inner) for inner in part if isinstance(inner, dict | list)]


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


def _fill(body: dict[str, Any], spec: ModelSpec, task: Task) -> tuple[dict[str, Any], list[str]]:
    filled = {key: value for key, value in body.items() if value is not None}
    filled["task"] = task
    warnings = []
    for part in ("output", "webhook"):
        if isinstance(given := filled.get(part), dict):
            filled[part] = {key: value for key, value in given.items() if value is not None}
    given = filled.get("input")
    if isinstance(given, dict) and given.get("negative_prompt") and not spec.negative_prompt:
        warnings.append(f"input.negative_prompt: {spec.id} takes none; ignored.")
    if isinstance(given, dict):
        asked = {key: value for key, value in given.items() if value is not None}
        if isinstance(extra := asked.get("extra", {}), dict):
            own = {name: field.default for name, field in spec.extra.items()}
            asked["extra"] = own | {k: v for k, v in extra.items() if v is not None}
        filled["input"] = {"seed": secrets.randbelow(2**32), **defaults(spec, task), **asked}
    return filled, warnings


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word[:80], known, 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _problem(error: Any, body: Any, kind: type[BaseModel], pointer: str = "") -> Problem:
    """pydantic's error with a pointer into the caller's body, in which `body` is at `pointer`:
    union tags in its path drop out."""
    here = body
    model: Any = kind
    for part in error["loc"]:
        inside = isinstance(here, dict) and part in here
        inside = inside or (isinstance(here, list) and isinstance(part, int) and part < len(here))
        if not inside and not (part is error["loc"][-1] and error["type"] == "missing"):
            continue
        if error["type"] == "extra_forbidden" and part is error["loc"][-1]:
            known = sorted(model.model_fields)
            detail = f"There is no field {str(part)[:80]!r} here.{_did_you_mean(part, known)}"
            return Problem(pointer + pointer_to(part), "unknown_field", detail)
        pointer += pointer_to(part)
        here = here[part] if inside else None
        model = _inner(model, part)
    return Problem(pointer, error["type"], _SAID.get(error["type"], error["msg"]) + ".")


def _inner(model: Any, field: Any) -> Any:
    """The model class inside a field, through a union such as `"auto" | Parallel`."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return model
    annotation: Any = model.model_fields[field].annotation if field in model.model_fields else None
    options = [annotation, *get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), model)


def pointer_to(*names: Any) -> str:
    """As RFC 6901 writes it; of a name the first 80 characters."""
    return "".join("/" + str(name)[:80].replace("~", "~0").replace("/", "~1") for name in names)


def _refusal(problems: list[Problem]) -> InvalidRequest:
    # A misspelt field first: what else is wrong often follows from it. What may be this or that,
    # and is a wrong this, is not told that it is no that.
    wrong = {p.pointer for p in problems if not p.code.endswith("_type")}
    told = (p for p in problems if p.pointer not in wrong or not p.code.endswith("_type"))
    unique = sorted(dict.fromkeys(told), key=lambda p: p.code != "unknown_field")
    return InvalidRequest(
        " ".join(f"{p.pointer}: {p.detail}" for p in unique[:3]), *unique[:MOST_PROBLEMS]
    )


def _beyond_limits(spec: ModelSpec, request: JobRequest) -> list[Problem]:
    limits, asked = spec.limits, request.input
    problems = []

    def refuse(field: str, detail: str) -> None:
        problems.append(Problem(f"/input/{field}", "limit", detail))

    for field, side in (("width", asked.width), ("height", asked.height)):
        if side % limits.side_step or not limits.min_side <= side <= limits.max_side:
            refuse(
                field,
                f"A {field} of {side} is no multiple of {limits.side_step} "
                f"between {limits.min_side} and {limits.max_side}.",
            )
    if asked.width * asked.height > limits.max_pixels:
        size = f"{asked.width}x{asked.height}"
        refuse("width", f"{size} is more than the model's {limits.max_pixels} pixels.")
    if asked.frames > limits.max_frames:
        refuse("num_frames", f"{asked.frames} frames; at most {limits.max_frames}.")
    elif (asked.frames - 1) % limits.frames_step:
        step = limits.frames_step
        refuse("num_frames", f"{asked.frames} frames are not 1 + a multiple of {step}.")
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


def _not_the_models_own(spec: ModelSpec, request: JobRequest) -> list[Problem]:
    """LoRAs and fields of `extra` that this model does not have."""
    problems, names = [], [lora.name for lora in request.input.loras]
    for index, name in enumerate(names):
        pointer = f"/input/loras/{index}/name"
        if name not in spec.loras:
            close = _did_you_mean(name, list(spec.loras))
            detail = f"{spec.id} has no LoRA {name[:80]!r}.{close}"
            problems.append(Problem(pointer, "unknown_lora", detail))
        elif name in names[:index]:
            problems.append(Problem(pointer, "duplicate", f"{name} comes twice."))
    own, extra = spec.extra_class(), request.input.extra
    try:
        own.model_validate(extra)
    except ValidationError as error:
        problems += [_problem(e, extra, own, "/input/extra") for e in error.errors()]
    return problems


def _unreadable(request: JobRequest) -> list[Problem]:
    """Pictures are decoded here, once; later on they are what they are."""
    problems = []
    for field in ("image", "mask"):
        try:
            if (url := getattr(request.input, field, None)) is not None:
                picture(url)
        except ValueError as error:
            problems.append(Problem(f"/input/{field}", "picture", f"The {field} {error}."))
    strength = getattr(request.input, "strength", 1.0)
    if int(request.input.num_inference_steps * strength) < 1:
        detail = f"{strength:g} of {request.input.num_inference_steps} steps is none."
        problems.append(Problem("/input/strength", "limit", detail))
    return problems


def _impossible_plan(spec: ModelSpec, request: JobRequest) -> list[Problem]:
    plan, asked = request.parallel, request.input
    if not isinstance(plan, Parallel):
        return []
    problems = []
    if plan.cfg > 1 and not spec.guides(asked.guidance_scale):
        detail = f"There is one pass a step here: {spec.id}, guidance {asked.guidance_scale:g}."
        problems.append(Problem("/parallel/cfg", "plan", detail))
    if plan.shard and plan.width == plan.data:
        detail = "One rank for an output has no others to share the weights with."
        problems.append(Problem("/parallel/shard", "plan", detail))
    if plan.spread_encoder and (plan.shard or plan.width == 1):
        detail = "Its layers are shared already." if plan.shard else "One rank has no others."
        problems.append(Problem("/parallel/spread_encoder", "plan", detail))
    elif plan.spread_encoder and asked.loras:
        detail = "A text encoder that is spread wears no LoRAs."
        problems.append(Problem("/parallel/spread_encoder", "plan", detail))
    counts = spec.shape.token_counts(asked.width, asked.height, asked.frames)
    if reason := spec.shape.refuses(plan.ulysses, plan.ring, counts):
        field = "ulysses" if plan.ulysses > 1 else "ring"
        problems.append(Problem(f"/parallel/{field}", "plan", reason))
    return problems
