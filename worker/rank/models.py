"""Pipelines in memory: loaded by catalogue entry, kept as long as there is room."""

import gc
import importlib
import inspect
import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from jobs.catalog import Catalog, LoraSpec, ModelSpec
from jobs.errors import Internal, JobError, ModelLoadFailed, ModelUnavailable
from jobs.weights import encoder_bytes, weights_bytes
from worker.rank import memory
from worker.rank.embeddings import remember_prompts
from worker.rank.parallel import denoisers, encoder
from worker.rank.parallel.shard import sharded_parts
from worker.rank.pipelines import PIPELINES

logger = logging.getLogger(__name__)

HEADROOM = 1.2  # of a model's bytes: what it computes in must fit as well
Loader = Callable[..., Any]


class Key(NamedTuple):
    """A pipeline and where it lies. width: ranks that share its weights. encoder_on: ranks that
    have its text encoder in common."""

    model: str
    load: Loader  # its adapter's
    width: int
    encoder_on: tuple[int, ...]

    @property
    def address(self) -> str:
        """Of the service that encodes for encoder_on."""
        return encoder.address_of(self.model, self.load.__module__, self.encoder_on[0])


def compile_blocks(pipeline: Any) -> None:
    """Has each denoiser's repeated block compiled at its first run, for every plan and size."""
    torch._dynamo.config.recompile_limit = 256  # of all models, plans and sizes together
    usual, _ = _AttentionBackendRegistry.get_active_backend()
    for denoiser in denoisers(pipeline):
        if denoiser.dtype in (torch.bfloat16, torch.float16):
            denoiser.set_attention_backend("_native_cudnn")
        # As peft leaves them: else all is compiled once more after the first LoRA.
        denoiser.requires_grad_(False)
        denoiser.compile_repeated_blocks(dynamic=False)
    # set_attention_backend() also sets it for every model that has chosen none.
    _AttentionBackendRegistry.set_active_backend(usual)


class Models:
    def __init__(self, catalog: Catalog, models_dir: Path, device: torch.device) -> None:
        self._catalog, self._models_dir, self.device = catalog, models_dir, device
        self._loaded: OrderedDict[Key, Any] = OrderedDict()
        self._services: dict[Key, encoder.Service] = {}

    def names(self) -> list[str]:
        """Of what is in memory."""
        return sorted({key.model for key in self._loaded})

    def adapter(self, model: str, task: str) -> ModuleType:
        """The module whose load() and run() serve this task of this model."""
        return importlib.import_module(self._spec(model).adapter or PIPELINES[task])

    def key(self, model: str, task: str, mesh: Any, encoder_on: tuple[int, ...]) -> Key:
        """Tasks that load alike share a pipeline."""
        width = 1 if mesh is None else mesh.size()
        return Key(model, self.adapter(model, task).load, width, encoder_on)

    def get(self, model: str, task: str, mesh: Any = None, encoder_on: tuple[int, ...] = ()) -> Any:
        """The pipeline, from memory or loaded. mesh: of the ranks that share its weights.
        encoder_on: the ranks that have its text encoder in common.

        Raises: ModelLoadFailed.
        """
        key = self.key(model, task, mesh, encoder_on)
        if key not in self._loaded:
            self._evict_other_placements(key)
            while self._loaded and memory.free_bytes() < HEADROOM * self._bytes(key):
                self._evict()
            pipeline = self._try(key, mesh) if self._loaded else None
            if pipeline is None:  # it does not fit beside the others
                self.clear()
                pipeline = self._load(key, mesh)
            self._loaded[key] = pipeline
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _evict_other_placements(self, wanted: Key) -> None:
        """A model is whole or shared, not both: it is shared because room is scarce."""
        for key in [k for k in self._loaded if k[:2] == wanted[:2]]:
            self._loaded.move_to_end(key, last=False)
            self._evict()

    def drop(self, model: str, task: str, mesh: Any, encoder_on: tuple[int, ...]) -> None:
        """As get(); what was answered there is not to be used again."""
        self._loaded.move_to_end(self.key(model, task, mesh, encoder_on), last=False)
        self._evict()

    def clear(self) -> None:
        while self._loaded:
            self._evict()

    def shrink(self) -> None:
        """Keeps only the model used last: another one's job has run out of memory."""
        while len(self._loaded) > 1:
            self._evict()

    def _bytes(self, key: Key) -> float:
        """That this rank's share of the weights takes."""
        source, dtype = self._source(key.model), self._spec(key.model).dtype
        whole = weights_bytes(source, dtype) / key.width
        if not key.encoder_on:
            return whole
        encoders = encoder_bytes(source, dtype)
        return whole - encoders + encoders / len(key.encoder_on)

    def _try(self, key: Key, mesh: Any) -> Any:
        """None if memory runs out; the half-loaded pipeline is gone when this returns."""
        try:
            return self._load(key, mesh)
        except torch.OutOfMemoryError:
            return None

    def lora(self, model: str, name: str) -> tuple[LoraSpec, str]:
        """And where it is. Raises: ModelLoadFailed."""
        known = self._spec(model).loras
        if name not in known:
            raise ModelLoadFailed(f"This worker's catalogue has no LoRA {name!r} for {model}.")
        return known[name], known[name].source(self._models_dir)

    def _source(self, model: str) -> str:
        return self._spec(model).source(self._models_dir)

    def _spec(self, model: str) -> ModelSpec:
        if model not in self._catalog:
            raise ModelLoadFailed(f"This worker's catalogue has no model {model!r}.")
        return self._catalog[model]

    def _load(self, key: Key, mesh: Any) -> Any:
        spec, source = self._spec(key.model), self._source(key.model)
        if source.startswith("/") and not Path(source).is_dir():
            raise ModelLoadFailed(f"Model {spec.id}: there is no folder {source}.")
        logger.info("loading %s from %s", spec.id, source)
        try:
            parts: dict[str, Any] = {}
            if mesh is not None:
                parts = sharded_parts(spec, source, mesh, self.device)
            elif key.encoder_on:
                parts = encoder.without_encoders(source)
            pipeline = key.load(spec, source, self.device, **parts)
            check_extra(pipeline, spec)
            for name, part in parts.items():
                if getattr(pipeline, name) is not part:
                    raise Internal(f"{type(pipeline).__name__} has loaded another {name}.")
            if key.encoder_on:
                encoder.check(pipeline)
            if mesh is None and spec.compiled and self.device.type == "cuda":
                compile_blocks(pipeline)
            if key.encoder_on:
                self._spread(pipeline, key)
            elif mesh is None and hasattr(pipeline, "encode_prompt"):
                remember_prompts(pipeline)
            return pipeline
        except (torch.OutOfMemoryError, JobError):
            raise
        except Exception as error:
            if memory.gpu_fault(error):
                raise
            logger.exception("%s can't be loaded", spec.id)
            raise refusal(f"Model {spec.id} can't be loaded from {source}", error) from None

    def _spread(self, pipeline: Any, key: Key) -> None:
        ranks, address = key.encoder_on, key.address
        if dist.get_rank() == ranks[0]:
            devices = [torch.device(self.device.type, rank) for rank in ranks]
            found = encoder.load_spread(self._spec(key.model), self._source(key.model), devices)
            pipeline.register_modules(**found)
            remember_prompts(pipeline)
            self._services[key] = encoder.Service(pipeline, address)
        else:
            encoder.ask(pipeline, address)
            remember_prompts(pipeline)

    def _evict(self) -> None:
        key = next(iter(self._loaded))
        del self._loaded[key]  # and no name for it here: it must be garbage below
        logger.info("evicted %s", key.model)
        if service := self._services.pop(key, None):
            service.close()
        gc.collect()  # a pipeline holds itself in cycles
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def refusal(said: str, error: Exception) -> JobError:
    """Of what can't be loaded, by why."""
    if _hub_is_away(error):
        return ModelUnavailable(f"{said}: its hub does not answer.")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelLoadFailed(f"{said}: {reason}")


def check_extra(pipeline: Any, spec: ModelSpec) -> None:
    """Raises: ModelLoadFailed, where the catalogue has fields that the pipeline does not take."""
    if spec.extra:
        foreign = set(spec.extra) - set(inspect.signature(pipeline.__call__).parameters)
        if foreign:
            raise ModelLoadFailed(f"{type(pipeline).__name__} takes no {min(foreign)!r}.")


def _hub_is_away(error: BaseException | None) -> bool:
    """Whether it, or the way there, has failed, and not what was asked of it."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status == 429 or status >= 500 or isinstance(error, (ConnectionError, TimeoutError)):
            return True
        if type(error).__name__ in ("ConnectError", "ConnectTimeout", "ReadTimeout", "ReadError"):
            return True  # httpx's, with which huggingface_hub asks
        error = error.__cause__ or error.__context__
    return False
