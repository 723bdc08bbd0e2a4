"""Meter: from what ranks report to a job's progress and metrics."""

import statistics
import time
from typing import Any

from jobs.request import Item
from worker.protocol import Done, Progress

# How far an item is when a stage begins; denoising goes from its figure to the next one's.
SHARE = {"text_encode": 0.0, "denoise": 0.02, "vae_decode": 0.9, "encode_file": 0.97}
UPLOAD = 0.98
SHORT = {"load_model_s": "load_s", "encode_file_s": "encode_s"}  # as metrics name them


class Meter:
    """value never goes back: an item's share only grows."""

    def __init__(self, items: list[Item], width: int) -> None:
        self._seeds = {item.index: item.seed for item in items}
        self._width = width
        self._began = time.monotonic()
        self._share = dict.fromkeys(self._seeds, 0.0)
        self._memory: dict[int, dict[str, int]] = {}
        self._step_at: dict[int, float] = {}
        self._steps: list[float] = []  # durations of denoising steps
        self._files: dict[int, dict[str, Any]] = {}
        self._peaks: dict[int, int] = {}
        self._timings: list[dict[str, float]] = []

    def progress(self, event: Progress) -> dict[str, Any]:
        now = time.monotonic()
        share = SHARE.get(event.stage, 0.0)
        if event.stage == "denoise":
            share += (SHARE["vae_decode"] - share) * min(1.0, event.step / max(1, event.steps))
            if event.step > 1:
                self._steps.append(now - self._step_at[event.rank])
            self._step_at[event.rank] = now
        self._share[event.index] = max(self._share[event.index], share)
        self._memory[event.rank] = event.memory
        typical = statistics.median(self._steps[-20:]) if self._steps else None
        value = UPLOAD * sum(self._share.values()) / len(self._share)
        elapsed = now - self._began
        return {
            "value": round(value, 4),
            "stage": event.stage,
            "step": event.step,
            "steps": event.steps,
            "it_per_s": round(1 / typical, 3) if typical else None,
            "eta_s": round(elapsed / value - elapsed, 1) if value > 0.05 else None,
            "memory": {str(rank): use for rank, use in sorted(self._memory.items())},
        }

    def done(self, event: Done) -> None:
        self._peaks[event.rank] = max(event.peak_memory_bytes, self._peaks.get(event.rank, 0))
        if event.file is not None:  # the lead's: it has every stage
            self._share[event.index] = 1.0
            seed = self._seeds[event.index]
            self._files[event.index] = {"index": event.index, "seed": seed, **event.file}
            self._timings.append(event.timings)

    def files(self) -> list[dict[str, Any]]:
        """Of every item, in order. Raises: KeyError, if one was never finished."""
        return [self._files[index] for index in self._seeds]

    def gpu_seconds(self) -> float:
        """Since it began, of all ranks of the lane."""
        return round((time.monotonic() - self._began) * self._width, 4)

    def metrics(self) -> dict[str, Any]:
        """Seconds: each stage summed over the items, as the leads measured it."""
        stages = {name for timings in self._timings for name in timings}
        total = time.monotonic() - self._began
        return {
            **{
                SHORT.get(s, s): round(sum(t.get(s, 0) for t in self._timings), 4)
                for s in sorted(stages)
            },
            "total_s": round(total, 4),
            "gpu_seconds": self.gpu_seconds(),
            "peak_memory_bytes": {str(rank): peak for rank, peak in sorted(self._peaks.items())},
        }
