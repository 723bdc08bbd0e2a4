"""Small pictures of what an item is about to become, between denoising steps."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

logger = logging.getLogger(__name__)

SIDE = 256  # pixels, at most
Look = Callable[[torch.Tensor], np.ndarray]  # latents -> uint8 [H, W, 3]


class Previews:
    def __init__(self, folder: Path, index: int, every: int) -> None:
        """every: steps from one to the next."""
        self._path, self._every = folder / f"{index}.preview.webp", every
        self._before: torch.Tensor | None = None  # the latents of the step before
        self._broken = False

    def after(self, pipe: Any, step: int, latents: torch.Tensor, look: Look) -> str | None:
        """The path of a new picture after this step (from 0), if one is due. A job does not fail
        by its preview: after a failure there are no more."""
        before, self._before = self._before, latents
        if self._broken or (step + 1) % self._every:
            return None
        try:
            picture = Image.fromarray(look(_clean(pipe, step, before, latents)))
            picture.thumbnail((SIDE, SIDE))
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            unfinished = self._path.with_suffix(".tmp")
            picture.save(unfinished, "WEBP", quality=70)
            unfinished.replace(self._path)
        except Exception:
            logger.warning("no preview", exc_info=True)
            self._broken = True
            return None
        return str(self._path)


def _clean(
    pipe: Any, step: int, before: torch.Tensor | None, latents: torch.Tensor
) -> torch.Tensor:
    """What the latents would be without their noise, if it went on straight: x0 = x - s dx/ds."""
    sigmas = getattr(pipe.scheduler, "sigmas", None)
    if before is None or sigmas is None:
        return latents
    was, now = (float(sigmas[k]) for k in (step, step + 1))
    if was == now:
        return latents
    slope = (latents.float() - before.float()) / (now - was)
    return (latents.float() - now * slope).to(latents.dtype)
