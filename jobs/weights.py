"""How many bytes a model's weights take in memory, read from the headers of its files."""

import functools
import json
import struct
from math import prod
from pathlib import Path

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
VARIANTS = (".fp16.", ".bf16.", ".fp32.", ".non_ema.")  # second copies of the same weights


def weights_bytes(source: str, dtype: str) -> int:
    """source: a folder or a hub id. 0 for what is not on this machine, or no diffusers folder."""
    folder = _folder(source)
    if folder is None or not (folder / "model_index.json").is_file():
        return 0
    index = json.loads((folder / "model_index.json").read_text())
    return sum(component_bytes(folder / name, dtype) for name in index)


def encoder_bytes(source: str, dtype: str) -> int:
    """Of a pipeline's text encoders alone."""
    folder = _folder(source)
    parts = folder.glob("text_encoder*") if folder is not None else ()
    return sum(component_bytes(part, dtype) for part in parts)


def component_bytes(folder: Path, dtype: str) -> int:
    """Of one component of a pipeline."""
    files = [f for f in folder.glob("*.safetensors") if not any(v in f.name for v in VARIANTS)]
    return SIZES[dtype] * sum(_numbers(file) for file in files)


def _folder(source: str) -> Path | None:
    if Path(source).is_absolute():
        return Path(source)
    # Late: the API does not have it, and does not ask.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, local_files_only=True))
    except Exception:  # not there, or not whole: nothing is known of it
        return None


@functools.lru_cache(maxsize=1024)
def _numbers(file: Path) -> int:
    """https://github.com/huggingface/safetensors: 8 bytes of length, then JSON."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
