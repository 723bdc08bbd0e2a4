"""Attention over a sequence that is split over ranks: Ulysses, ring, or both.

Ulysses (https://arxiv.org/abs/2309.14509): each rank swaps its share of the tokens of all heads for
all tokens of its share of the heads. diffusers sends query, key and value one after the other; here
one all-to-all carries the three. Ring: each rank keeps its queries and gathers the keys and values
of its ring, as diffusers' and Llama 3's context parallelism do: no head limit, more to send.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as funcol


def split_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    *,
    forward_op: Callable[..., Any],
    backward_op: object,
    _parallel_config: Any,
) -> torch.Tensor:
    """In place of diffusers' templated context-parallel attention, without gradients.

    query, key, value: this rank's tokens, [B, S, H, D]; so is the answer. attn_mask: of this rank's
    keys, [..., S], or of all; [B, H, ...] may differ by head.
    Keys and values are put into the order of one GPU, so that a softmax adds up in the same order.
    """
    config = _parallel_config.context_parallel_config
    ulysses, ring = config.ulysses_degree, config.ring_degree
    if attn_mask is not None and attn_mask.shape[-1] == key.shape[1]:
        attn_mask = _gathered(attn_mask, -1, config._flattened_mesh.get_group())
    if attn_mask is not None and attn_mask.dim() == 4 and attn_mask.shape[1] == query.shape[2]:
        attn_mask = attn_mask.chunk(ulysses, 1)[config._ulysses_local_rank]
    if ulysses > 1:
        parts = _tokens_for_heads([query, key, value], ulysses, config._ulysses_mesh.get_group())
    else:
        parts = [x.transpose(1, 2).unsqueeze(2) for x in (query, key, value)]
    queries, keys, values = parts  # [B, H / ulysses, ulysses, S, D]
    if ring > 1:
        both = _gathered(torch.stack([keys, values]), 3, config._ring_mesh.get_group())
        keys, values = both.unbind(0)
    text = _parallel_config.text_tokens // (ulysses * ring)
    out = forward_op(
        None,
        queries.flatten(2, 3).transpose(1, 2),
        _in_model_order(keys, text).transpose(1, 2),
        _in_model_order(values, text).transpose(1, 2),
        attn_mask,
        dropout_p,
        is_causal,
        scale,
        enable_gqa,
        False,
        _save_ctx=False,
    )
    return _heads_for_tokens(out, ulysses, config._ulysses_mesh.get_group()) if ulysses > 1 else out


def _in_model_order(x: torch.Tensor, text: int) -> torch.Tensor:
    """[B, H, ranks, S, D], where the first `text` of a rank's S tokens are of the text, to
    [B, H, ranks x S, D] with all of the text first."""
    if not text:
        return x.flatten(2, 3)
    return torch.cat([x[:, :, :, :text].flatten(2, 3), x[:, :, :, text:].flatten(2, 3)], 2)


def _tokens_for_heads(parts: list[torch.Tensor], degree: int, group: Any) -> list[torch.Tensor]:
    """Each [B, S, H, D] to [B, H / degree, degree, S, D], contiguous, by one all-to-all."""
    lengths = [part.shape[1] for part in parts]
    packed = torch.cat([part.unflatten(2, (degree, -1)) for part in parts], 1)
    packed = _all_to_all(packed.permute(2, 0, 3, 1, 4).contiguous(), group)
    return [x.permute(1, 2, 0, 3, 4).contiguous() for x in packed.split(lengths, 3)]


def _heads_for_tokens(x: torch.Tensor, degree: int, group: Any) -> torch.Tensor:
    """The way back: [B, degree x S, H / degree, D] to [B, S, H, D]."""
    swapped = _all_to_all(x.unflatten(1, (degree, -1)).transpose(0, 1).contiguous(), group)
    return swapped.permute(1, 2, 0, 3, 4).flatten(2, 3)


def _all_to_all(x: torch.Tensor, group: Any) -> torch.Tensor:
    """Row i of x goes to rank i. Flat, or torch.compile finds its strides wrong."""
    return _whole(funcol.all_to_all_single(x.flatten(), None, None, group)).view(x.shape)


def _gathered(x: torch.Tensor, dim: int, group: Any) -> torch.Tensor:
    ranks = dist.get_world_size(group)
    rows = _whole(funcol.all_gather_tensor(x.contiguous().unsqueeze(0), 0, group))
    return torch.cat(rows.view(ranks, *x.shape).unbind(0), dim)


def _whole(x: torch.Tensor) -> torch.Tensor:
    return x.wait() if isinstance(x, funcol.AsyncCollectiveTensor) else x
