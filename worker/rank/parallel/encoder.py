"""Text encoders that the ranks of a plan have in common: in the process of the first of them, their
layers on the GPUs of all by accelerate's device_map, as in Open-Sora's inference.

The others ask it for each prompt's embeddings over a unix socket. Nobody has to be in step for
that, so that ranks which deal prompts among themselves can share an encoder too.
"""

import functools
import hashlib
import inspect
import io
import logging
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from jobs.catalog import ModelSpec
from jobs.errors import ModelLoadFailed
from worker.rank.embeddings import ENTRIES, key_of
from worker.rank.parallel.shard import Kind, class_of, components

logger = logging.getLogger(__name__)

LOOK_S = 0.1  # from one look for the encoder's socket to the next
CLOSE_S = 5


def without_encoders(source: str) -> dict[str, None]:
    """What a pipeline of this repository is loaded without."""
    return dict.fromkeys(_encoders(source)[1])


def load_spread(spec: ModelSpec, source: str, devices: Sequence[torch.device]) -> dict[str, Any]:
    """The text encoders by name, each with its layers on all these devices."""
    folder, kinds = _encoders(source)
    gpus = [device.index for device in devices if device.type == "cuda"]
    loaded = {}
    for name, named in kinds.items():
        kind = class_of(named)
        with init_empty_weights():
            empty = kind(kind.config_class.from_pretrained(folder / name))
        empty.tie_weights()
        loaded[name] = kind.from_pretrained(
            folder / name,
            dtype=getattr(torch, spec.dtype),
            use_safetensors=True,
            device_map=even_map(empty, gpus) if gpus else {"": "cpu"},
        )
    return loaded


def even_map(model: nn.Module, devices: Sequence[int]) -> dict[str, int]:
    """A device for every part of the model: its repeated layers in runs of about equal size, all
    else with the first run. accelerate's own "balanced" puts 44 % of UMT5 on the second of four."""
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    name, layers = max(lists.items(), key=lambda item: _size(item[1]))
    path = name.split(".")
    places: dict[str, int] = {}
    for depth in range(len(path)):
        parent = model.get_submodule(".".join(path[:depth]))
        others = [n for n, _ in (*parent.named_children(), *parent.named_parameters(recurse=False))]
        places |= {".".join([*path[:depth], n]): devices[0] for n in others if n != path[depth]}
    share = _size(model) / len(devices)
    before = _size(model) - _size(layers)
    for i, layer in enumerate(layers):
        middle = before + _size(layer) / 2
        places[f"{name}.{i}"] = devices[min(int(middle / share), len(devices) - 1)]
        before += _size(layer)
    return places


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _encoders(source: str) -> tuple[Path, dict[str, Kind]]:
    folder, kinds = components(source)
    return folder, {name: k for name, k in kinds.items() if name.startswith("text_encoder")}


class Service(threading.Thread):
    """Answers what a pipeline's encode_prompt() makes of each question, until close()."""

    def __init__(self, pipeline: Any, address: str) -> None:
        super().__init__(name="encoder", daemon=True)
        self._encode, self._device = pipeline.encode_prompt, pipeline.device
        self._lock = threading.Lock()  # over the encoder
        self._answers: OrderedDict[str, bytes] = OrderedDict()
        self._address, self._closed = address, False
        Path(address).unlink(missing_ok=True)
        self._listener = Listener(address, "AF_UNIX", backlog=64)
        pipeline.encode_prompt = self.encode
        self.start()

    def encode(self, *args: Any, **asked: Any) -> Any:
        """The pipeline's own call. Its answer for others is made at once, not when they ask: by
        then the device may be busy with a collective that waits for who asks."""
        with self._lock:
            made = self._encode(*args, **asked)
            key = key_of(args, asked)
            if key is not None:
                if key not in self._answers:
                    torch.save(made, buffer := io.BytesIO())
                    self._answers[key] = buffer.getvalue()
                self._answers.move_to_end(key)
                if len(self._answers) > ENTRIES:
                    self._answers.popitem(last=False)
            return made

    def run(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        while True:
            try:
                with self._listener.accept() as asker:
                    if (question := asker.recv()) is None:
                        return
                    asker.send(self._answer(*question))
            except EOFError:  # who only looked whether somebody is here
                continue
            except Exception:
                if self._closed:
                    return
                logger.exception("a question to the text encoder came to nothing")

    @torch.no_grad()
    def _answer(self, args: tuple[Any, ...], asked: dict[str, Any]) -> bytes | str:
        def here(value: Any) -> Any:
            return self._device if isinstance(value, torch.device) else value

        args, asked = tuple(map(here, args)), {k: here(v) for k, v in asked.items()}
        key = key_of(args, asked)
        assert key is not None, "ask() sends nothing else"
        try:
            if key not in self._answers:
                self.encode(*args, **asked)
            return self._answers[key]
        except Exception as error:
            logger.exception("a prompt can't be encoded")
            return f"{type(error).__name__}: {error}"

    def close(self) -> None:
        self._closed = True
        with Client(self._address) as asker:
            asker.send(None)
        self.join(CLOSE_S)
        self._listener.close()


def ask(pipeline: Any, address: str) -> None:
    """Has this pipeline, which has no encoder, ask the service for embeddings."""
    encode, device = pipeline.encode_prompt, pipeline.device

    @functools.wraps(encode)
    def asked_for(*args: Any, **asked: Any) -> Any:
        if key_of(args, asked) is None:
            return encode(*args, **asked)  # it has embeddings already
        with Client(address) as service:
            service.send((args, asked))
            answer = service.recv()
        if isinstance(answer, str):
            raise RuntimeError(f"In the text encoder of another rank: {answer}")
        return torch.load(io.BytesIO(answer), map_location=device, weights_only=True)

    pipeline.encode_prompt = asked_for


def check(pipeline: Any) -> None:
    """Raises: ModelLoadFailed, for a pipeline that other ranks can't encode for."""
    encode = getattr(pipeline, "encode_prompt", None)
    if encode is None or "image" in inspect.signature(encode).parameters:
        kind = type(pipeline).__name__
        raise ModelLoadFailed(f"{kind} encodes more than text: its encoder can't be spread.")


def wait_for(address: str, heed: Callable[[], None]) -> None:
    """Until there is a service. heed: called meanwhile; it raises where waiting must end."""
    while True:
        try:
            with Client(address):
                return
        except (FileNotFoundError, ConnectionRefusedError):
            heed()
            time.sleep(LOOK_S)


def address_of(model: str, loader: str, lead: int) -> str:
    """In the group's own folder, which nobody else may enter: the launcher sets it as TMPDIR."""
    name = hashlib.sha256(f"{model} {loader}".encode()).hexdigest()[:12]
    return str(Path(tempfile.gettempdir()) / f"text-{lead}-{name}")
