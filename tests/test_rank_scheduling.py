"""A scheduler that never has its CPU wait draws what it drew before, bit by bit."""

from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from torch.overrides import TorchFunctionMode

from worker.rank.scheduling import never_wait

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


class Calls(TorchFunctionMode):
    """What is asked of torch, below the modes that are entered later."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0  # on a GPU

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        moved = function is torch.Tensor.to and args[0].device.type == "cpu"
        self.waits += function is torch.linalg.solve
        self.waits += moved and not kwargs.get("non_blocking", False)
        return function(*args, **kwargs)


def drawn(scheduler: Any) -> tuple[torch.Tensor, int]:
    """Latents of every one of ten steps, and how often a GPU would have been waited for."""
    noise = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 3, 8, 8, generator=noise)
    scheduler.set_timesteps(10)
    seen = []
    with Calls() as calls:
        for time in scheduler.timesteps:
            answer = torch.randn(latents.shape, generator=noise)
            latents = scheduler.step(answer, time, latents, return_dict=False)[0]
            seen.append(latents)
    return torch.stack(seen), calls.waits


@pytest.mark.parametrize("order", [2, 3])
def test_the_same_bits_without_a_wait(order: int) -> None:
    expected, waits = drawn(UniPCMultistepScheduler(**FLOW, solver_order=order))
    scheduler = UniPCMultistepScheduler(**FLOW, solver_order=order)
    never_wait(scheduler)
    ours, left = drawn(scheduler)
    assert torch.equal(ours, expected)
    assert waits > 0 and left == 0
