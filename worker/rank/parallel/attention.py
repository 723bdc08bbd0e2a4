"""Attention over a sequence that is split over ranks: Ulysses, ring, or both.

Ulysses (https://arxiv.org/abs/2309.14509): each rank swaps its share of the tokens of all heads for
all tokens of its share of the heads. diffusers sends query, key and value one after the other; here
one all-to-all carries the three, and some heads travel while others attend. Ring: each rank keeps
its queries and gathers the keys and values of its ring, as diffusers' and Llama 3's context
parallelism do: no head limit, more to send.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as funcol

LONG_TOKENS = 16_384
Coming = tuple[torch.Tensor, torch.Size]  # flat, on its way, and what shape it will have


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
    text = _parallel_config.text_tokens // (ulysses * ring)
    if attn_mask is not None and attn_mask.shape[-1] == key.shape[1]:
        attn_mask = _gathered(attn_mask, -1, config._flattened_mesh.get_group())
    if attn_mask is not None and attn_mask.dim() == 4 and attn_mask.shape[1] == query.shape[2]:
        attn_mask = attn_mask.chunk(ulysses, 1)[config._ulysses_local_rank]

    def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Any:
        """Each [B, heads of this rank, ulysses, S, D]."""
        if ring > 1:
            both = _gathered(torch.stack([keys, values]), 3, config._ring_mesh.get_group())
            keys, values = both.unbind(0)
        return forward_op(
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

    parts = [query, key, value]
    if ulysses == 1:
        return attend(*(part.transpose(1, 2).unsqueeze(2) for part in parts))
    turns = _turns(query, ulysses) if attn_mask is None else 1
    swap = TokensForHeads(ulysses, turns, config._ulysses_mesh.get_group())
    coming = [swap.start(parts, turn) for turn in range(turns)]
    lengths = [part.shape[1] for part in parts]
    attended = (attend(*swap.arrived(each, lengths)) for each in coming)
    return swap.back([swap.start_back(each) for each in attended])


def _turns(query: torch.Tensor, ulysses: int) -> int:
    """In how many turns the heads of a rank attend. Short sequences are done before it pays."""
    heads = query.shape[2] // ulysses
    long = query.shape[1] * ulysses >= LONG_TOKENS
    return next(turns for turns in (3, 2, 1) if heads % turns == 0) if long else 1


def _in_model_order(x: torch.Tensor, text: int) -> torch.Tensor:
    """[B, H, ranks, S, D], where the first `text` of a rank's S tokens are of the text, to
    [B, H, ranks x S, D] with all of the text first."""
    if not text:
        return x.flatten(2, 3)
    return torch.cat([x[:, :, :, :text].flatten(2, 3), x[:, :, :, text:].flatten(2, 3)], 2)


class TokensForHeads:
    """Swaps a rank's share of the tokens of all heads for all tokens of its share of the heads, and
    back. What has started travels while the caller computes something else."""

    def __init__(self, degree: int, turns: int, group: Any) -> None:
        self._degree, self._turns, self._group = degree, turns, group

    def start(self, parts: list[torch.Tensor], turn: int) -> Coming:
        """parts: each [B, S, H, D]. One all-to-all carries, of each rank's heads, the turn's."""
        heads = [
            part.unflatten(2, (self._degree, self._turns, -1))[:, :, :, turn] for part in parts
        ]
        return self._all_to_all(torch.cat(heads, 1).permute(2, 0, 3, 1, 4))

    def arrived(self, coming: Coming, lengths: list[int]) -> list[torch.Tensor]:
        """Each [B, H', degree, S, D], contiguous."""
        return [x.permute(1, 2, 0, 3, 4).contiguous() for x in _wait(coming).split(lengths, 3)]

    def start_back(self, x: torch.Tensor) -> Coming:
        """x: [B, degree x S, H', D]."""
        return self._all_to_all(x.unflatten(1, (self._degree, -1)).transpose(0, 1))

    def back(self, coming: list[Coming]) -> torch.Tensor:
        """[B, S, H, D], of all turns."""
        turns = torch.stack([_wait(each) for each in coming], 1)  # [degree, turns, B, S, H', D]
        return turns.permute(2, 3, 0, 1, 4, 5).flatten(2, 4)

    def _all_to_all(self, x: torch.Tensor) -> Coming:
        """Starts: row i of x goes to rank i. Flat, or torch.compile finds its strides wrong."""
        flat = x.contiguous().flatten()
        sizes = [flat.shape[0] // self._degree] * self._degree
        name = self._group.group_name
        return torch.ops._c10d_functional.all_to_all_single(flat, sizes, sizes, name), x.shape


def _wait(coming: Coming) -> torch.Tensor:
    flat, shape = coming
    return torch.ops._c10d_functional.wait_tensor(flat).view(shape)


def _gathered(x: torch.Tensor, dim: int, group: Any) -> torch.Tensor:
    ranks = dist.get_world_size(group)
    rows = _whole(funcol.all_gather_tensor(x.contiguous().unsqueeze(0), 0, group))
    return torch.cat(rows.view(ranks, *x.shape).unbind(0), dim)


def _whole(x: torch.Tensor) -> torch.Tensor:
    return x.wait() if isinstance(x, funcol.AsyncCollectiveTensor) else x
