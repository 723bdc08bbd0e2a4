"""What callers of the OpenAI endpoints say, as the job that it asks for.

Their forms are text throughout; what only OpenAI's models know (quality, style, …) is read over,
unless it asks for another result (an SVG, a GIF's frames, a markup); our own fields (seed,
num_inference_steps, …) may come beside theirs.
"""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flask import request
from PIL import Image
from werkzeug.datastructures import FileStorage

from api.asked import choice_of, json_object
from api.auth import caller, tenant
from api.forms import content, part_names
from api.nested import unfolded
from api.services import services
from jobs.catalog import ModelSpec, Task
from jobs.errors import InvalidRequest, Problem, RequestError
from jobs.images import data_url, picture
from jobs.store import new_id

READ_OVER = {
    *(
        "background",
        "complexity",
        "input_fidelity",
        "moderation",
        "output_compression",
        "quality",
        "stream",
    ),
    *("partial_images", "safety_identifier", "style", "user", "response_format", "output_format"),
}
# Of those, the words that are theirs: another one is a slip, or asks for what nobody draws here.
CHOICES = {
    "quality": ("auto", "low", "medium", "high", "standard", "hd"),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "style": ("vivid", "natural"),
    "input_fidelity": ("low", "high"),
}
NUMBERS = ("seed", "num_inference_steps", "guidance_scale", "strength", "fps", "num_frames")
INPUT = {*NUMBERS, "prompt", "negative_prompt", "n", "image", "mask", "loras", "extra"}
TOP = {"model", "priority", "deadline_s", "metadata", "parallel"}
# Where a caller of these endpoints finds what our own request names.
PARAMS = {"width": "size", "height": "size", "num_frames": "seconds", "task": "model"}
FOLD_S = 900
ANSWER_S = 5  # that an answer may be on its way
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


@dataclass(frozen=True)
class Asked:
    """fields: as text from a form, as JSON values otherwise. files: by field, in their order."""

    fields: dict[str, Any]
    files: dict[str, list[bytes]]

    def words(self, name: str, silent: str) -> str:
        return str(self.fields.get(name) or silent)

    def true(self, name: str) -> bool:
        return self.fields.get(name) in (True, "true", "True", "1")

    @property
    def digest(self) -> str:
        """The same for a request that is sent again by the same key, whatever its boundary."""
        files = {k: [hashlib.sha256(f).hexdigest() for f in v] for k, v in self.files.items()}
        text = json.dumps([caller().id, request.path, self.fields, files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def asked() -> Asked:
    """Raises: UnsupportedMediaType, RequestEntityTooLarge, MalformedJson, InvalidRequest."""
    if request.mimetype not in FORMS:
        return Asked({k: v for k, v in json_object().items() if v is not None}, {})
    part_names()
    fields = unfolded(request.form)
    files: dict[str, list[bytes]] = {}
    sent: FileStorage
    for name, sent in request.files.items(multi=True):
        files.setdefault(name.removesuffix("[]"), []).append(content(name, sent))
    return Asked(fields, files)


@contextlib.contextmanager
def named_as_theirs(**more: str) -> Iterator[None]:
    """Errors about our request point at the field that the caller has sent. more: his names of
    fields of ours, of this endpoint alone."""
    try:
        yield
    except RequestError as error:
        said, problems = str(error), []
        for p in error.problems:
            pointer = _theirs(p.pointer, PARAMS | more)
            said = said.replace(f"{p.pointer}: ", f"{pointer[1:]}: ")
            problems.append(Problem(pointer, p.code, p.detail))
        error.args, error.problems = (said,), tuple(problems)
        raise


def _theirs(pointer: str, names: dict[str, str]) -> str:
    name = pointer.removeprefix("/input/").strip("/").split("/")[0]
    return f"/{names.get(name, name)}"


def body_of(
    said: Asked, task: Task, known: set[str], files: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The body of our own request. known: fields that this endpoint understands besides; files:
    those of files."""
    for name in said.files:
        if name not in files:
            raise _unknown(name)
    spec = _model(said.fields.get("model"), task)
    body: dict[str, Any] = {"model": said.fields.get("model", spec.id), "task": task, "input": {}}
    for name, value in said.fields.items():
        if name in INPUT:
            body["input"][name] = _own(value, spec) if name == "extra" else _number(name, value)
        elif name in TOP:
            body[name] = _plan(value) if name == "parallel" else _number(name, value)
        elif name not in READ_OVER | known:
            raise _unknown(name)
        elif name in CHOICES:
            choice_of(name, str(value), CHOICES[name])
    size = said.words("size", "auto")
    if size != "auto":
        sides = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", size)
        if sides is None:
            raise _wrong("size", "Write it as WIDTHxHEIGHT, such as 1024x1024.")
        body["input"].update(width=int(sides[1]), height=int(sides[2]))
    if (seconds := said.fields.get("seconds")) is not None:
        if "num_frames" in said.fields:
            raise _wrong("num_frames", "Send it or seconds, not both.")
        body["input"]["num_frames"] = _frames(str(seconds), body["input"], spec)
    return body


def _model(name: Any, task: Task) -> ModelSpec:
    """The one that is named, or the first that does the task. What is wrong with the name is said
    where the body is parsed."""
    catalog = services().catalog
    if isinstance(name, str) and name in catalog:
        return catalog[name]
    able = [spec for spec in catalog.values() if task in spec.tasks]
    if not able:
        raise _wrong("model", f"No model of this fleet does {task}.")
    return able[0]


def _number(name: str, value: Any) -> Any:
    if name == "loras" and isinstance(value := _read(value), list):
        return [
            {k: _read(v) if k == "scale" else v for k, v in lora.items()}
            if isinstance(lora, dict)
            else lora
            for lora in value
        ]
    return _read(value) if name in (*NUMBERS, "n", "deadline_s") else value


def _own(value: Any, spec: ModelSpec) -> Any:
    """The model's own fields, of which some are text."""
    if not isinstance(value := _read(value), dict):
        return value
    texts = {name for name, own in spec.extra.items() if own.type == "string"}
    return {k: v if k in texts else _read(v) for k, v in value.items()}


def _plan(value: Any) -> Any:
    """Forms have no numbers."""
    return {k: _read(v) for k, v in value.items()} if isinstance(value, dict) else value


def _read(value: Any) -> Any:
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _frames(seconds: str, asked: dict[str, Any], spec: ModelSpec) -> int:
    """The number of frames nearest to it that the model can make."""
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", seconds) or float(seconds) == 0:
        raise _wrong("seconds", "A number above 0.")
    fps = asked.get("fps") or spec.defaults.get("fps") or 1
    if not isinstance(fps, int) or not 1 <= fps <= 120:
        raise _wrong("fps", "A whole number from 1 to 120.")
    step = spec.limits.frames_step
    return 1 + step * max(1, round(float(seconds) * fps / step))


def picture_url(content: bytes, name: str) -> str:
    """A data URL. Raises: InvalidRequest, for what is no picture."""
    url = data_url(content)
    if url is None:
        raise _wrong(name, "Send a PNG, JPEG or WebP.")
    try:
        picture(url)
    except ValueError as error:
        raise _wrong(name, f"The {name} {error}.") from None
    return url


def mask_url(content: bytes) -> str:
    """OpenAI's masks are transparent where something new is to be drawn; ours are white there."""
    sent = picture(picture_url(content, "mask"))
    if sent.has_transparency_data:
        sent = sent.convert("RGBA")  # a palette's, too
    if "A" not in sent.getbands():
        raise _wrong("mask", "It has no transparent part: nothing to draw.")
    drawn = sent.getchannel("A").point(lambda alpha: 255 - alpha)
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return picture_url(file.getvalue(), "mask")


def side_fitting(size: int, spec: ModelSpec) -> int:
    limits = spec.limits
    side = round(size / limits.side_step) * limits.side_step
    return max(limits.min_side, min(limits.max_side, side))


def like(url: str, spec: ModelSpec) -> dict[str, int]:
    """The size of a result that is to look like this picture, within the model's limits."""
    sent: Image.Image = picture(url)
    room = min(1.0, (spec.limits.max_pixels / (sent.width * sent.height)) ** 0.5)
    sides = (int(sent.width * room), int(sent.height * room))
    width, height = (side_fitting(side, spec) for side in sides)
    return {"width": width, "height": height}


def _unknown(name: str) -> InvalidRequest:
    detail = f"There is no field {name[:80]!r} here."
    return InvalidRequest(detail, Problem(f"/{name[:80]}", "unknown_field", detail))


def _wrong(name: str, detail: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: {detail}", Problem(f"/{name}", "invalid", detail))


def wait_s() -> float:
    """How long to wait for pictures, in seconds: not until the client, which says when, gives up
    and asks again."""
    most = float(services().settings.openai_wait_s)
    said = request.headers.get("X-Stainless-Read-Timeout", "")
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", said):
        most = min(most, max(float(said) - ANSWER_S, float(said) / 2))
    return most


def once(said: Asked, make: Callable[[str], str], kind: str = "job") -> str:
    """What make(id) answers, which records a job, or a batch, under that new id, and only once; or
    the id of the same request before, where the client says that it sends it again: it names no
    idempotency key, and an answer that is lost must not cost a second job. So the id is
    remembered first: what fails behind that is done again under the same one."""
    tenants, mine = services().store.tenants, tenant()
    count = request.headers.get("X-Stainless-Retry-Count", "")
    if not count:
        return make(new_id(kind))
    id, made = tenants.recall(mine, said.digest) if count != "0" else ("", False)
    if made and _there(id):
        return id
    if made or not id:  # what is gone is no answer
        tenants.remember(mine, said.digest, id := new_id(kind), False, FOLD_S)
    make(id)
    tenants.remember(mine, said.digest, id, True, FOLD_S)
    return id


def _there(id: str) -> bool:
    store = services().store
    return bool(store.get(id, tenant()) or store.batches.get(id, tenant()))
