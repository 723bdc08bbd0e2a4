"""What may be asked of each model; the data is a TOML file, the packaged one is models.toml."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from jobs.errors import SettingsError

Task = Literal["text-to-image", "text-to-video", "image-to-image", "inpaint", "image-to-video"]
SHIPPED = Path(__file__).parent.parent / "worker" / "rank" / "weights"
Guidance = Literal["none", "two-pass", "batched"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Frozen):
    """Sizes in pixels. Frames are 1 + a multiple of frames_step."""

    side_step: int = Field(16, gt=0)
    min_side: int = Field(16, gt=0)
    max_side: int = Field(2048, gt=0)
    max_pixels: int = Field(2048 * 2048, gt=0)
    frames_step: int = Field(4, gt=0)
    max_frames: int = Field(1, gt=0)
    max_steps: int = Field(100, gt=0)
    max_outputs: int = Field(64, gt=0)
    max_prompt_chars: int = Field(5000, gt=0)


class Shape(_Frozen):
    """What the planner must know of the transformer, so that it needs no weights and no torch."""

    heads: int | None = Field(None, gt=0)  # None: its tokens can't be split over ranks (U-Nets)
    spatial: int = Field(16, gt=0)  # pixels of a side per token: VAE scale x patch
    temporal: int = Field(4, gt=0)  # frames per latent frame
    text_tokens: int | None = None  # set where the text is split over ranks too (Flux, LTX)
    joint: bool = True  # such text is in one sequence with the picture (Flux), not beside it (LTX)

    def refuses(self, ulysses: int, ring: int, counts: tuple[int, ...]) -> str | None:
        """Why a sequence over ulysses x ring ranks can't run, as a sentence; None if it can."""
        degree = ulysses * ring
        if degree == 1:
            return None
        if self.heads is None:
            return "This model's tokens can't be split over ranks; use data or cfg."
        if self.heads % ulysses:
            most = min(ulysses - 1, self.heads)  # callers ask for 10**30, too
            allowed = [u for u in range(1, most + 1) if self.heads % u == 0]
            return (
                f"ulysses={ulysses} does not divide the model's {self.heads} attention heads; "
                f"{max(allowed)} does, and ring has no such limit."
            )
        for count in counts:
            if count % degree:
                return f"{degree} ranks do not divide the {count} tokens of this size."
        return None

    def token_counts(self, width: int, height: int, frames: int = 1) -> tuple[int, ...]:
        """Length of each sequence that a split over ranks must divide."""
        latent_frames = (frames - 1) // self.temporal + 1
        latent = latent_frames * (height // self.spatial) * (width // self.spatial)
        return (latent,) if self.text_tokens is None else (latent, self.text_tokens)


class LoraSpec(_Frozen):
    """A LoRA that a model may be asked to wear. weights: as a model's. file: the one of its
    repository with the weights. file_2: the one for the second denoiser, where a model has two and
    each has its own (Wan 2.2)."""

    weights: str
    file: str = Field("pytorch_lora_weights.safetensors", pattern=r"\.safetensors$")
    file_2: str | None = Field(None, pattern=r"\.safetensors$")
    description: str = ""

    def source(self, models_dir: Path) -> str:
        """As a model's."""
        return _source(self.weights, models_dir)


class OwnField(_Frozen):
    """A field of `extra`: what the call of this model's pipeline takes by that name."""

    type: Literal["number", "integer", "boolean", "string"]
    default: float | int | bool | str
    minimum: float | None = None
    maximum: float | None = None
    description: str = ""

    @model_validator(mode="after")
    def _bounds_are_of_numbers(self) -> "OwnField":
        if self.type not in ("number", "integer") and (self.minimum, self.maximum) != (None, None):
            raise ValueError(f"a {self.type} has no bounds.")
        return self


# What every pipeline is called with, by the request or by us.
OURS = {
    *("prompt", "negative_prompt", "n", "seed", "width", "height", "num_frames", "fps", "image"),
    *("num_inference_steps", "guidance_scale", "mask", "strength", "loras", "extra", "generator"),
    *("latents", "output_type", "return_dict", "callback_on_step_end"),
    "callback_on_step_end_tensor_inputs",
}


def _own(name: str) -> str:
    if name in OURS or name.endswith(("_embeds", "_embeds_mask")):
        raise ValueError(f"{name} is no model's own.")
    return name


OwnName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$"), AfterValidator(_own)]
_TYPES = {"number": float, "integer": int, "boolean": bool, "string": str}


class ModelSpec(_Frozen):
    """weights: a hub id ("org/name"), a folder ("/…"), a folder of FLEET_MODELS_DIR ("./…"), or one
    that comes with the worker ("shipped:…"). loras, extra: by the names that requests give them.
    adapter: a module with load() and run() in place of the tasks' own. guidance: whether a step has
    a pass with the prompt and one without, which the ranks of a replica may share: "two-pass",
    named by the pipeline in cache_context(), or "batched", as the halves of one batch. compiled: on
    a GPU the denoiser's repeated block is compiled, which costs each plan and size some 10 s
    once."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    weights: str
    tasks: tuple[Task, ...] = Field(min_length=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    owned_by: str = "unknown"
    adapter: str | None = None
    negative_prompt: bool = True
    guidance: Guidance = "none"
    compiled: bool = False
    shape: Shape
    limits: Limits = Limits()
    defaults: dict[str, Any] = {}
    extra: dict[OwnName, OwnField] = {}
    loras: dict[str, LoraSpec] = {}

    def source(self, models_dir: Path) -> str:
        """What from_pretrained() takes: a folder's path or a hub id."""
        return _source(self.weights, models_dir)

    @model_validator(mode="after")
    def _defaults_are_allowed(self) -> "ModelSpec":
        self.extra_class().model_validate({name: own.default for name, own in self.extra.items()})
        return self

    def extra_class(self) -> type[BaseModel]:
        """What `extra` of a request for this model must be."""
        fields: dict[str, Any] = {
            name: (
                _TYPES[own.type],
                Field(own.default, ge=own.minimum, le=own.maximum, description=own.description),
            )
            for name, own in self.extra.items()
        }
        strict = ConfigDict(
            extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
        )
        return create_model("Extra", __config__=strict, **fields)

    def guides(self, guidance_scale: float) -> bool:
        """Whether each step has two passes, which the ranks of a replica may share."""
        return self.guidance != "none" and guidance_scale > 1


def _source(weights: str, models_dir: Path) -> str:
    if weights.startswith("./"):
        return str(models_dir / weights)
    if weights.startswith("shipped:"):
        return str(SHIPPED / weights.removeprefix("shipped:"))
    return weights


Catalog = Mapping[str, ModelSpec]


def load_catalog(path: Path) -> Catalog:
    """Raises: SettingsError that names the file, the model and the field."""
    try:
        tables = tomllib.loads(path.read_text())["models"]
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"The catalogue {path} can't be read: {error}.") from None
    except KeyError:
        raise SettingsError(f"The catalogue {path} has no [models.NAME] table.") from None
    return {id: _model(path, id, table) for id, table in tables.items()}


def _model(path: Path, id: str, table: dict[str, Any]) -> ModelSpec:
    try:
        return ModelSpec(**{**table, "id": id})
    except ValidationError as error:
        wrong = "; ".join(
            f"field {'.'.join(map(str, e['loc']))!r}: {e['msg']}" for e in error.errors()
        )
        raise SettingsError(f"The catalogue {path}, model {id!r}, {wrong}.") from None
