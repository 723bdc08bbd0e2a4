"""A stage of the training: steps, averaged weights, a file to go on from, any number of GPUs."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))
LOOK = 10  # steps from one look at the clock to the next


def seed_of(step: int) -> int:
    """Another one on every rank at every step."""
    return step * WORLD + RANK


def whole_or_not(path: Path, write: Callable[[Path], object]) -> None:
    """A file or folder appears when it is finished: a training may be killed at any moment."""
    unfinished = path.with_name(path.name + ".part")
    write(unfinished)
    unfinished.rename(path)


class Training:
    """One stage: a loss, its weights, and a file to go on from."""

    def __init__(
        self,
        file: Path,
        modules: list[nn.Module],
        steps: int,
        lr: float,
        decay: float,
    ) -> None:
        self._file, self._steps = file, steps
        self.limit()
        self._lr, self._decay = lr, decay
        weights = [p for module in modules for p in module.parameters()]
        self._weights = weights
        self._optimizers = _optimizers(modules, lr)
        self._average = [p.detach().clone() for p in weights]
        self.done, self._spent = 0, 0.0
        if file.exists():
            state = torch.load(file, map_location=weights[0].device)
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.done, self._spent = state["done"], state["spent"]
            for p, saved in zip(weights, state["weights"], strict=True):
                p.data.copy_(saved)
            self._average = state["average"]

    def limit(self, until: float = math.inf, budget_s: float = math.inf) -> None:
        """until: when this call stops, by time.monotonic(). budget_s: seconds of all calls, which
        end the training, and the fall of its learning rate, before its steps are done."""
        self._until, self._budget_s = until, budget_s

    def run(self, loss_of: Callable[[int], torch.Tensor]) -> bool:
        """Whether it is finished; the modules now hold the averaged weights."""
        began, losses = time.monotonic(), torch.zeros((), device=self._weights[0].device)
        told, told_at = self.done, began
        share, late = self._look(0)[0], False  # a call gets on, however short
        while share < 1 and not late:
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self._lr * _schedule(self.done, share)
            loss = loss_of(self.done)
            loss.backward()
            self._share_gradients()
            nn.utils.clip_grad_norm_(self._weights, 1.0)
            for optimizer in self._optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.done += 1
            keep = min(self._decay, self.done / (self.done + 20))
            torch._foreach_lerp_(self._average, [p.data for p in self._weights], 1 - keep)
            losses += loss.detach()
            if RANK == 0 and (self.done % 200 == 0 or self.done in (10, self._steps)):
                pace = (time.monotonic() - told_at) / (self.done - told)
                mean = losses.item() / (self.done - told)
                losses.zero_()
                told, told_at = self.done, time.monotonic()
                print(
                    f"{self._file.stem} {self.done} loss {mean:.5f} {pace:.3f} s/step", flush=True
                )
            if self.done % 500 == 0:
                self.save()
            if self.done % LOOK == 0 or self.done == self._steps:
                now = time.monotonic()
                share, late = self._look(now - began)
                began = now
        self.save()
        for p, averaged in zip(self._weights, self._average, strict=True):
            p.data.copy_(averaged)
        return share >= 1

    def _share_gradients(self) -> None:
        if WORLD == 1:
            return
        gradients = [p.grad for p in self._weights if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, mean in zip(
            gradients, flat.div_(WORLD).split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))

    def _look(self, seconds: float) -> tuple[float, bool]:
        """How much of the training is done, and whether this call is; the same on all ranks."""
        self._spent += seconds
        share = max(self.done / self._steps, self._spent / self._budget_s)
        late = float(time.monotonic() > self._until)
        both = torch.tensor([share, late], device=self._weights[0].device)
        if WORLD > 1:
            dist.all_reduce(both, dist.ReduceOp.MAX)
        share, late = both.tolist()
        return share, bool(late)

    def save(self) -> None:
        if RANK:
            return
        state = {
            "done": self.done,
            "spent": self._spent,
            "weights": [p.data for p in self._weights],
            "average": self._average,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        whole_or_not(self._file, lambda unfinished: torch.save(state, unfinished))


def _optimizers(modules: list[nn.Module], lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of transformer blocks, scaled to AdamW's rates; AdamW for the rest."""
    matrices = [
        layer.weight
        for module in modules
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and "block" in name
    ]
    muons = {id(p) for p in matrices}
    rest = [p for module in modules for p in module.parameters() if id(p) not in muons]
    adam = torch.optim.AdamW(rest, lr, betas=(0.9, 0.99), weight_decay=0.01, fused=rest[0].is_cuda)
    if not matrices:
        return [adam]
    return [adam, torch.optim.Muon(matrices, lr, 0.01, adjust_lr_fn="match_rms_adamw")]


def _schedule(step: int, share: float) -> float:
    return min(1.0, (step + 1) / 500) * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)
