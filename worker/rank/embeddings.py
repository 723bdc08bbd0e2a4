"""A prompt is encoded once: what a pipeline made of the last ones is kept with it."""

import functools
from collections import OrderedDict
from typing import Any

import torch

ENTRIES = 32  # 8 MB each for Wan, with its negative prompt


def remember_prompts(pipeline: Any) -> None:
    """Wraps the pipeline's encode_prompt(), with a forget(). Not for shared weights: there encoding
    is collective, and a rank that remembers would leave its peers waiting."""
    encode, kept = pipeline.encode_prompt, OrderedDict[Any, Any]()

    @functools.wraps(encode)
    def encode_once(*args: Any, **asked: Any) -> Any:
        key = key_of(args, asked)
        if key is None:
            return encode(*args, **asked)
        if key not in kept:
            kept[key] = encode(*args, **asked)
        kept.move_to_end(key)
        if len(kept) > ENTRIES:
            kept.popitem(last=False)
        return kept[key]

    encode_once.forget = kept.clear  # type: ignore[attr-defined]
    pipeline.encode_prompt = encode_once


def key_of(args: tuple[Any, ...], asked: dict[str, Any]) -> str | None:
    """Says all of a call; None where that can't be said."""
    if not all(_plain(value) for value in (*args, *asked.values())):
        return None
    return repr((args, sorted(asked.items())))


def _plain(value: Any) -> bool:
    """Whether its repr() says all of it: a picture's or a tensor's does not."""
    if isinstance(value, (list, tuple)):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, (str, bool, int, float, torch.device, torch.dtype))
