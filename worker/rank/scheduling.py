"""Scheduler steps that don't have the CPU wait for its GPU.

diffusers' UniPC moves single numbers to the GPU and solves a system of two equations there, and
waits each time until it has computed all that came before: then the GPU waits in turn for
the next step's first launches. The same arithmetic, without the waits, gives the same bits.
"""

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def never_wait(scheduler: Any) -> None:
    """Puts the scheduler's step() under _NoWait."""
    step = scheduler.step

    @functools.wraps(step)  # pipelines look at its parameters
    def unhurried(*args: Any, **kwargs: Any) -> Any:
        with _NoWait():
            return step(*args, **kwargs)

    scheduler.step = unhurried


class _NoWait(TorchFunctionMode):
    def __torch_function__(
        self,
        function: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if function is torch.Tensor.to and args[0].device.type == "cpu":
            given["non_blocking"] = True  # the driver has read so small a thing when this returns
        elif function is torch.linalg.solve:  # without its look at what the solver reports
            return torch.linalg.solve_ex(*args, **given).result
        return function(*args, **given)
