"""Wan's VAE decodes in stripes of rows, which the ranks of a replica share.

Before a convolution looks at neighbouring rows, neighbours swap the rows at their seams; the middle
block's attention sees the whole picture. No tiles: no seams to blend, no work done twice. There are
as many stripes as the group has ranks, however many of them decode: convolutions of the same shapes
give the same bits in every plan.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    unpatchify,
)
from torch import nn
from torch.nn import functional as F

ROWS = -2


def decode(
    vae: AutoencoderKLWan, latents: torch.Tensor, stripes: int, group: Any
) -> Generator[torch.Tensor, None, None]:
    """latents: [1, C, F, H, W], the same on all ranks of the group, which all iterate.

    Yields uint8 pictures [f, 3, H, W] as they are ready: whole ones on the group's first rank, a
    rank's own rows elsewhere.
    """
    rows = latents.shape[ROWS]
    shared = Stripes(vae, rows, stripes, group) if rows >= stripes > 1 else None
    with shared.seen_by_convolutions() if shared else contextlib.nullcontext():
        for chunk in _chunks(vae, latents, shared):
            pixels = ((chunk[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().transpose(0, 1)
            yield shared.whole(pixels) if shared else pixels


def _chunks(
    vae: AutoencoderKLWan, latents: torch.Tensor, shared: "Stripes | None"
) -> Iterator[torch.Tensor]:
    """AutoencoderKLWan._decode(), each latent frame's pictures [1, 3, f, H, W] by themselves."""
    vae.clear_cache()
    x = vae.post_quant_conv(latents)
    if shared:
        x = shared.mine(x)
    try:
        for i in range(x.shape[2]):
            vae._conv_idx = [0]
            chunk = vae.decoder(
                x[:, :, i : i + 1],
                feat_cache=vae._feat_map,
                feat_idx=vae._conv_idx,
                first_chunk=i == 0,
            )
            if vae.config.patch_size is not None:
                chunk = unpatchify(chunk, patch_size=vae.config.patch_size)
            yield chunk.clamp(-1, 1)
    finally:  # gigabytes, that whoever is stopped must not keep
        vae.clear_cache()


class Stripes:
    """The rows of a picture, cut into `count` stripes; each rank of the group has as many."""

    def __init__(self, vae: AutoencoderKLWan, rows: int, count: int, group: Any) -> None:
        self._vae, self._group = vae, group
        self._rank: int = dist.get_rank(group) if group else 0
        self._size: int = dist.get_world_size(group) if group else 1
        heights = [len(part) for part in torch.arange(rows).tensor_split(count)]
        each = count // self._size
        self._by_rank = [heights[i * each : (i + 1) * each] for i in range(self._size)]

    def mine(self, x: torch.Tensor) -> torch.Tensor:
        return x.split([sum(heights) for heights in self._by_rank], ROWS)[self._rank]

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """All ranks' rows on the first rank; the others get theirs back."""
        stripes = self._gather(x)
        return torch.cat(stripes, ROWS) if self._rank == 0 else x

    @contextlib.contextmanager
    def seen_by_convolutions(self) -> Iterator[None]:
        decoder = self._vae.decoder
        attentions = [m for m in decoder.modules() if isinstance(m, WanAttentionBlock)]
        inside = {m for attention in attentions for m in attention.modules()}
        for attention in attentions:
            attention.forward = functools.partial(self._attention, attention)
        for module in decoder.modules():
            if module in inside:
                continue
            if isinstance(module, WanCausalConv3d):
                module.forward = functools.partial(self._causal, module)
            elif isinstance(module, nn.Conv2d):
                module.forward = functools.partial(self._flat, module)
        try:
            yield
        finally:
            for module in decoder.modules():
                module.__dict__.pop("forward", None)

    def _gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's rows of x, whatever its scale."""
        if self._size == 1:
            return [x]
        latent_rows = [sum(heights) for heights in self._by_rank]
        scale = x.shape[ROWS] // latent_rows[self._rank]
        tallest = max(latent_rows) * scale
        padded = F.pad(x, (0, 0, 0, tallest - x.shape[ROWS])).contiguous()
        parts = [torch.empty_like(padded) for _ in range(self._size)]
        dist.all_gather(parts, padded, group=self._group)
        return [p.narrow(ROWS, 0, rows * scale) for p, rows in zip(parts, latent_rows, strict=True)]

    def _seams(self, x: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The neighbours' nearest rows, above x and below; zeros beyond the picture."""
        above = below = x.new_zeros(*x.shape[:ROWS], rows, x.shape[-1])
        if self._size > 1 and rows:
            last = x.shape[ROWS] - rows
            edges = torch.stack([x.narrow(ROWS, 0, rows), x.narrow(ROWS, last, rows)])
            all_edges = [torch.empty_like(edges) for _ in range(self._size)]
            dist.all_gather(all_edges, edges, group=self._group)
            above = all_edges[self._rank - 1][1] if self._rank else above
            below = all_edges[self._rank + 1][0] if self._rank + 1 < self._size else below
        return above, below

    def _by_stripe(
        self,
        convolve: Callable[[torch.Tensor], torch.Tensor],
        x: torch.Tensor,
        rows: int,
        columns: int = 0,
        before: int = 0,
    ) -> torch.Tensor:
        """Each of this rank's stripes of x by itself, with `rows` more above and below, and zeros:
        `columns` on both sides, `before` frames. One copy of each, as without stripes."""
        heights, bottom = self._by_rank[self._rank], x.shape[ROWS]
        scale = bottom // sum(heights)
        above, below = self._seams(x, rows)
        parts, first = [], 0
        for last in itertools.accumulate(height * scale for height in heights):
            shape = list(x.shape)
            shape[ROWS], shape[-1] = last - first + 2 * rows, shape[-1] + 2 * columns
            if before:
                shape[2] += before
            wide = x.new_zeros(shape)
            inner = wide[:, :, before:] if before else wide
            inner = inner[..., columns : columns + x.shape[-1]]
            top, end = max(0, first - rows), min(bottom, last + rows)
            inner.narrow(ROWS, top - first + rows, end - top).copy_(x.narrow(ROWS, top, end - top))
            if first == 0:
                inner.narrow(ROWS, 0, rows).copy_(above)
            if last == bottom:
                inner.narrow(ROWS, shape[ROWS] - rows, rows).copy_(below)
            parts.append(convolve(wide))
            first = last
        return torch.cat(parts, ROWS) if len(parts) > 1 else parts[0]

    def _causal(
        self, conv: WanCausalConv3d, x: torch.Tensor, past: torch.Tensor | None = None
    ) -> torch.Tensor:
        columns, _, rows, _, before, _ = conv._padding
        if past is not None and before:
            x, before = torch.cat([past, x], 2), before - past.shape[2]
        convolve = functools.partial(nn.Conv3d.forward, conv)
        return self._by_stripe(convolve, x, rows, columns, before)

    def _flat(self, conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        rows, columns = conv.padding
        convolve = functools.partial(F.conv2d, weight=conv.weight, bias=conv.bias)
        return self._by_stripe(convolve, x, rows, columns)

    def _attention(self, block: WanAttentionBlock, x: torch.Tensor) -> torch.Tensor:
        whole = WanAttentionBlock.forward(block, torch.cat(self._gather(x), ROWS))
        return self.mine(whole)
