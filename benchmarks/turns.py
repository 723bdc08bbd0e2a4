"""What attention costs when the heads of a rank attend in turns, on one GPU.

`python -m benchmarks.turns`: for the shapes of a rank in some plans, milliseconds of all its heads
in one call and in several, which is what worker/rank/parallel/attention.py makes of it so that some
heads can travel meanwhile. What the travelling takes is steps.py's matter, on several GPUs.
"""

import time

import torch
from torch.nn.functional import scaled_dot_product_attention

# name: heads of a rank, tokens of the sequence, all with 128 channels a head.
SHAPES = {
    "Wan 1.3B 480p, 1 rank": (12, 32760),
    "Wan 1.3B 480p, ulysses=2": (6, 32760),
    "Wan 1.3B 480p, ulysses=4": (3, 32760),
    "Wan 1.3B 720p, ulysses=4": (3, 75600),
    "Wan 14B 480p, ulysses=4": (10, 32760),
    "Flux 1024x1024, ulysses=4": (6, 4608),
}


def main() -> None:
    for name, (heads, tokens) in SHAPES.items():
        size = (3, 1, heads, tokens, 128)
        qkv = torch.randn(size, device="cuda", dtype=torch.bfloat16)
        whole = milliseconds([qkv])
        line = f"{name}: {heads} heads of {tokens} tokens, one call {whole:.3f} ms"
        for turns in (t for t in (2, 3) if heads % t == 0):
            split = milliseconds([part.contiguous() for part in qkv.chunk(turns, dim=2)])
            line += f"; {turns} turns {split:.3f} ({split / whole:.3f})"
        print(line, flush=True)


def milliseconds(parts: list[torch.Tensor], warming: int = 5, times: int = 30) -> float:
    """Of attending to the parts, each [3, B, H, S, D], one after another."""
    for run in range(warming + times):
        if run == warming:
            torch.cuda.synchronize()
            began = time.monotonic()
        for part in parts:
            scaled_dot_product_attention(*part)
    torch.cuda.synchronize()
    return (time.monotonic() - began) / times * 1000


if __name__ == "__main__":
    main()
