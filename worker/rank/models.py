"""Pipelines in memory: loaded by catalogue entry, kept as long as there is room."""

import gc
import importlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from jobs.catalog import Catalog, ModelSpec
from jobs.errors import ModelLoadFailed
from worker.rank import memory
from worker.rank.parallel import denoisers
from worker.rank.pipelines import PIPELINES

logger = logging.getLogger(__name__)

HEADROOM = 1.2  # of a model's bytes: what it computes in must fit as well
Loader = Callable[..., Any]
SHIPPED = Path(__file__).parent / "weights"


def compile_blocks(pipeline: Any) -> None:
    """Has each denoiser's repeated block compiled at its first run, for every plan and size."""
    torch._dynamo.config.recompile_limit = 64
    for denoiser in denoisers(pipeline):
        if denoiser.dtype in (torch.bfloat16, torch.float16):
            denoiser.set_attention_backend("_native_cudnn")
        denoiser.compile_repeated_blocks(dynamic=False)


class Models:
    def __init__(self, catalog: Catalog, models_dir: Path, device: torch.device) -> None:
        self._catalog, self._models_dir, self.device = catalog, models_dir, device
        self._loaded: OrderedDict[tuple[str, Loader], Any] = OrderedDict()

    def adapter(self, model: str, task: str) -> ModuleType:
        """The module whose load() and run() serve this task of this model."""
        return importlib.import_module(self._spec(model).adapter or PIPELINES[task])

    def get(self, model: str, task: str) -> Any:
        """The pipeline, from memory or loaded. Raises: ModelLoadFailed."""
        key = model, self.adapter(model, task).load  # tasks that load alike share a pipeline
        if key not in self._loaded:
            while self._loaded and memory.free_bytes() < HEADROOM * self._bytes(model):
                self._evict()
            pipeline = self._try(model, task) if self._loaded else None
            if pipeline is None:  # it does not fit beside the others
                while self._loaded:
                    self._evict()
                pipeline = self._load(self._spec(model), task)
            self._loaded[key] = pipeline
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def shrink(self) -> None:
        """Keeps only the model used last: another one's job has run out of memory."""
        while len(self._loaded) > 1:
            self._evict()

    def _bytes(self, model: str) -> int:
        """Of its weights, as far as they lie in a folder; 0 for what is still to be downloaded."""
        folder = Path(self._spec(model).source(self._models_dir, SHIPPED))
        return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))

    def _try(self, model: str, task: str) -> Any:
        """None if memory runs out; the half-loaded pipeline is gone when this returns."""
        try:
            return self._load(self._spec(model), task)
        except torch.OutOfMemoryError:
            return None

    def _spec(self, model: str) -> ModelSpec:
        if model not in self._catalog:
            raise ModelLoadFailed(f"This worker's catalogue has no model {model!r}.")
        return self._catalog[model]

    def _load(self, spec: ModelSpec, task: str) -> Any:
        source = spec.source(self._models_dir, SHIPPED)
        if source.startswith("/") and not Path(source).is_dir():
            raise ModelLoadFailed(f"Model {spec.id}: there is no folder {source}.")
        logger.info("loading %s from %s", spec.id, source)
        try:
            pipeline = self.adapter(spec.id, task).load(spec, source, self.device)
            if spec.compiled and self.device.type == "cuda":
                compile_blocks(pipeline)
            return pipeline
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            logger.exception("%s can't be loaded", spec.id)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelLoadFailed(
                f"Model {spec.id} can't be loaded from {source}: {reason}"
            ) from None

    def _evict(self) -> None:
        (model, _load), _ = self._loaded.popitem(last=False)
        logger.info("evicted %s", model)
        gc.collect()  # a pipeline holds itself in cycles
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
