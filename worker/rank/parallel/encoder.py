"""Text encoders that the ranks of a plan have in common: in the process of the first of them, their
layers on the GPUs of all by accelerate's device_map, as in Open-Sora's inference.

The others ask it for each prompt's embeddings over a unix socket. Nobody has to be in step for
that, so that ranks which deal prompts among themselves can share an encoder too.
"""

import functools
import hashlib
import importlib
import io
import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from jobs.catalog import ModelSpec
from jobs.errors import InvalidInput
from worker.rank.embeddings import plain

logger = logging.getLogger(__name__)

LOOK_S = 0.1  # from one look for the encoder's socket to the next
SPARE = 0.9  # of a GPU's free memory that an encoder's layers may take


def without_encoders(source: str) -> dict[str, None]:
    """What a pipeline of this repository is loaded without."""
    return dict.fromkeys(_encoders(source)[1])


def load_spread(spec: ModelSpec, source: str, devices: Sequence[torch.device]) -> dict[str, Any]:
    """The text encoders by name, each with its layers on all these devices."""
    folder, kinds = _encoders(source)
    gpus = [device.index for device in devices if device.type == "cuda"]
    loaded = {}
    for name, (library, kind) in kinds.items():
        free = {gpu: int(SPARE * torch.cuda.mem_get_info(gpu)[0]) for gpu in gpus}
        loaded[name] = getattr(importlib.import_module(library), kind).from_pretrained(
            folder / name,
            dtype=getattr(torch, spec.dtype),
            use_safetensors=True,
            device_map="balanced" if gpus else {"": "cpu"},
            max_memory=free or None,
        )
    return loaded


def _encoders(source: str) -> tuple[Path, dict[str, tuple[str, str]]]:
    folder = Path(source if Path(source).is_dir() else DiffusionPipeline.download(source))
    index = json.loads((folder / "model_index.json").read_text())
    return folder, {
        name: kind
        for name, kind in index.items()
        if name.startswith("text_encoder") and kind != [None, None]
    }


def share(pipeline: Any, address: str) -> "Service":
    """Serves this pipeline's encode_prompt() at the address, one prompt at a time."""
    lock, encode = threading.Lock(), pipeline.encode_prompt

    @functools.wraps(encode)
    def one_at_a_time(*args: Any, **asked: Any) -> Any:
        with lock:
            return encode(*args, **asked)

    pipeline.encode_prompt = one_at_a_time
    return Service(one_at_a_time, address, pipeline.device)


class Service(threading.Thread):
    """Answers with what encode() makes of each question, until close()."""

    def __init__(self, encode: Callable[..., Any], address: str, device: torch.device) -> None:
        super().__init__(name="encoder", daemon=True)
        self._encode, self._device = encode, device
        self._address = address
        Path(address).unlink(missing_ok=True)
        self._listener = Listener(address, "AF_UNIX", backlog=64)
        self.start()

    def run(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        while True:
            try:
                with self._listener.accept() as asker:
                    if (question := asker.recv()) is None:
                        return
                    asker.send(self._answer(*question))
            except (OSError, EOFError):  # it asks no more
                continue

    @torch.no_grad()
    def _answer(self, args: tuple[Any, ...], asked: dict[str, Any]) -> bytes | str:
        def here(value: Any) -> Any:
            return self._device if isinstance(value, torch.device) else value

        try:
            made = self._encode(*map(here, args), **{k: here(v) for k, v in asked.items()})
            torch.save(made, buffer := io.BytesIO())
            return buffer.getvalue()
        except Exception as error:
            logger.exception("a prompt can't be encoded")
            return f"{type(error).__name__}: {error}"

    def close(self) -> None:
        with Client(self._address) as asker:
            asker.send(None)
        self.join()
        self._listener.close()


def ask(pipeline: Any, address: str) -> None:
    """Has this pipeline, which has no encoder, ask the service for embeddings."""
    encode, device = pipeline.encode_prompt, pipeline.device

    @functools.wraps(encode)
    def asked_for(*args: Any, **asked: Any) -> Any:
        if any(isinstance(value, torch.Tensor) for value in (*args, *asked.values())):
            return encode(*args, **asked)  # they are embeddings
        if not all(plain(value) for value in (*args, *asked.values())):
            kind = type(pipeline).__name__
            raise InvalidInput(f"{kind} encodes pictures with its prompt: not on other ranks.")
        with Client(address) as service:
            service.send((args, asked))
            answer = service.recv()
        if isinstance(answer, str):
            raise RuntimeError(f"In the text encoder of another rank: {answer}")
        return torch.load(io.BytesIO(answer), map_location=device, weights_only=True)

    pipeline.encode_prompt = asked_for


def wait_for(address: str, heed: Callable[[], None]) -> None:
    """Until there is a service. heed: called meanwhile; it raises where waiting must end."""
    while True:
        try:
            with Client(address):
                return
        except OSError:
            heed()
            time.sleep(LOOK_S)


def address_of(model: str, lead: int) -> str:
    """In the group's own folder, which nobody else may enter."""
    name = hashlib.sha256(model.encode()).hexdigest()[:16]
    return str(Path(tempfile.gettempdir()) / f"encoder-{lead}-{name}")
