"""The validated question, one class a task, the same in the API and on a worker. Names follow
diffusers."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema

from jobs.catalog import ModelSpec, Task
from jobs.images import shown

# Of what is counted; more is computed with before the model's limits are looked at.
MOST = 2**31 - 1
MOST_PROMPTS = 1000  # each wrong one of a list is an error of its own
Prompt = Annotated[str, Field(min_length=1)]
Picture = Annotated[
    str,
    Field(pattern="^data:image/"),  # parse.py looks into it, once
    WithJsonSchema(  # what a caller may send: api/inputs.py makes a data URL of it
        {
            "anyOf": [
                {"type": "string", "pattern": "^(data:image/|https?://)"},
                *(
                    {"type": "object", "required": [name], "additionalProperties": False, **fields}
                    for name, fields in {
                        "upload": {"properties": {"upload": {"type": "string"}}},
                        "job": {
                            "properties": {
                                "job": {"type": "string"},
                                "output": {"type": "integer", "minimum": 0, "default": 0},
                            }
                        },
                        "file": {"properties": {"file": {"type": "string"}}},
                    }.items()
                ),
            ]
        }
    ),
]
MOST_METADATA = 50
Metadata = Annotated[dict[str, str | int | float | bool | None], Field(max_length=MOST_METADATA)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Parallel(_Part):
    """An explicit plan: the product of the degrees is the number of ranks that the job runs on."""

    data: int = Field(1, ge=1, le=MOST)
    cfg: int = Field(1, ge=1, le=2)
    ulysses: int = Field(1, ge=1, le=MOST)
    ring: int = Field(1, ge=1, le=MOST)
    shard: bool = False
    spread_encoder: bool = False

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


class Lora(_Part):
    """name: of the model's LoRAs. scale: 1 is as it was trained, 0 is without."""

    name: str = Field(max_length=200)
    scale: float = Field(1.0, ge=-10, le=10)


class _Input(_Part):
    """extra: fields of the model's own."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MOST_PROMPTS)]
    negative_prompt: str | None = None
    n: int = Field(1, ge=1, le=MOST)
    seed: int = Field(ge=0, lt=2**53)
    width: int = Field(gt=0, le=MOST)
    height: int = Field(gt=0, le=MOST)
    num_inference_steps: int = Field(ge=1, le=MOST)
    guidance_scale: float = Field(ge=0, le=100)
    loras: list[Lora] = Field([], max_length=8)
    extra: dict[str, str | int | float | bool] = Field({}, max_length=50)

    @property
    def pixels(self) -> int:
        return self.width * self.height


class ImageInput(_Input):
    @property
    def frames(self) -> int:
        return 1


class VideoInput(_Input):
    num_frames: int = Field(ge=1, le=MOST)
    fps: int = Field(ge=1, le=120)

    @property
    def frames(self) -> int:
        return self.num_frames


class FromImage(ImageInput):
    """image: fitted to width x height. strength: how much of it is drawn anew."""

    image: Picture
    strength: float = Field(0.6, gt=0, le=1)


class FromMaskedImage(FromImage):
    """mask: white where something new is to be drawn."""

    mask: Picture
    strength: float = Field(1.0, gt=0, le=1)


class VideoFromImage(VideoInput):
    """image: the first frame."""

    image: Picture


class _Output(_Part):
    """thumbnail: whether a small picture is made of it as well."""

    thumbnail: bool = True


class ImageOutput(_Output):
    format: Literal["png", "webp"] = "png"


class VideoOutput(_Output):
    format: Literal["mp4"] = "mp4"


@dataclass(frozen=True)
class Item:
    """One picture or one video of a job; the unit that the data plan deals to ranks."""

    index: int
    prompt: str
    seed: int


class Webhook(_Part):
    """Where a job's end is told, and which ends; Standard Webhooks, see worker/webhooks.py."""

    url: str = Field(max_length=2000)
    events: list[Literal["succeeded", "failed", "canceled", "expired"]] = Field(
        ["succeeded", "failed", "canceled", "expired"], min_length=1, max_length=4
    )


class Preview(_Part):
    """Pictures of what the first outputs are about to become, for as long as the job runs."""

    every_n_steps: int = Field(5, ge=1, le=1000)


class _Request(_Part):
    model: str
    parallel: Literal["auto"] | Parallel = "auto"
    priority: Literal["high", "normal", "low"] = "normal"
    deadline_s: float | None = Field(None, gt=0, le=30 * 86400)
    metadata: Metadata = {}
    preview: Preview | None = None
    webhook: Webhook | None = None

    @property
    def width(self) -> int:
        """The ranks that it needs at least."""
        return self.parallel.width if isinstance(self.parallel, Parallel) else 1


class TextToImage(_Request):
    task: Literal["text-to-image"]
    input: ImageInput
    output: ImageOutput = ImageOutput()


class TextToVideo(_Request):
    task: Literal["text-to-video"]
    input: VideoInput
    output: VideoOutput = VideoOutput()


class ImageToImage(_Request):
    task: Literal["image-to-image"]
    input: FromImage
    output: ImageOutput = ImageOutput()


class Inpaint(_Request):
    task: Literal["inpaint"]
    input: FromMaskedImage
    output: ImageOutput = ImageOutput()


class ImageToVideo(_Request):
    task: Literal["image-to-video"]
    input: VideoFromImage
    output: VideoOutput = VideoOutput()


JobRequest = TextToImage | TextToVideo | ImageToImage | Inpaint | ImageToVideo
REQUESTS: dict[Task, type[JobRequest]] = {
    "text-to-image": TextToImage,
    "text-to-video": TextToVideo,
    "image-to-image": ImageToImage,
    "inpaint": Inpaint,
    "image-to-video": ImageToVideo,
}
_STORED: TypeAdapter[JobRequest] = TypeAdapter(Annotated[JobRequest, Field(discriminator="task")])


def stored_request(text: str) -> JobRequest:
    """The inverse of request.model_dump_json()."""
    return _STORED.validate_json(text)


def apart(request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A request with what is shown of its pictures, and the pictures: up to 20 MB each, that only
    who draws needs to read."""
    pictures = {k: v for k, v in request["input"].items() if k in ("image", "mask")}
    seen = {name: shown(url) for name, url in pictures.items()}
    return whole(request, seen), pictures


def whole(request: dict[str, Any], pictures: dict[str, str]) -> dict[str, Any]:
    """The inverse of apart()."""
    return {**request, "input": {**request["input"], **pictures}}


def _input(task: Task) -> type[_Input]:
    return cast(type[_Input], REQUESTS[task].model_fields["input"].annotation)


def input_fields(task: Task) -> set[str]:
    return set(_input(task).model_fields)


def input_schema(spec: ModelSpec, task: Task) -> dict[str, Any]:
    """JSON schema of `input`; the model's limits come on top."""
    schema = _input(task).model_json_schema()
    schema["properties"]["extra"] = {**spec.extra_class().model_json_schema(), "default": {}}
    if spec.loras:
        schema["$defs"]["Lora"]["properties"]["name"]["enum"] = list(spec.loras)
    else:
        schema["properties"]["loras"]["maxItems"] = 0
    return schema


def defaults(spec: ModelSpec, task: Task) -> dict[str, Any]:
    """The model's, less what only another of its tasks takes."""
    foreign = set().union(*map(input_fields, spec.tasks)) - input_fields(task)
    return {field: value for field, value in spec.defaults.items() if field not in foreign}


def filled_in(spec: ModelSpec, task: Task) -> dict[str, Any]:
    """What a request's input has where it is silent."""
    fields = _input(task).model_fields.items()
    silent = {name: field.default for name, field in fields if not field.is_required()}
    return {**silent, **defaults(spec, task)}


def items(request: JobRequest) -> list[Item]:
    """prompts x n, each with its own seed: seed, seed+1, …"""
    prompt = request.input.prompt
    prompts = [prompt] if isinstance(prompt, str) else prompt
    repeated = [text for text in prompts for _ in range(request.input.n)]
    return [Item(i, text, request.input.seed + i) for i, text in enumerate(repeated)]


def work(request: JobRequest) -> int:
    """What the time that it takes grows with."""
    asked = request.input
    return len(items(request)) * asked.num_inference_steps * asked.pixels * asked.frames


def alone(request: JobRequest, item: Item) -> dict[str, Any]:
    """What POST /v1/jobs takes to make this item again, by itself. Pictures are large: they are
    left away."""
    asked = request.input.model_dump(exclude={"image", "mask"}, exclude_none=True)
    return {
        "model": request.model,
        "task": request.task,
        "input": {**asked, "prompt": item.prompt, "n": 1, "seed": item.seed},
        "output": {"format": request.output.format},
    }
