"""Models in a rank's memory: loaded once, kept while there is room."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from jobs.catalog import Catalog
from jobs.errors import ModelLoadFailed
from worker.rank.embeddings import ENTRIES
from worker.rank.models import Models

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def models(catalog: Catalog, models_dir: Path) -> Models:
    return Models(catalog, models_dir, CPU)


def test_more_than_two_models_stay_and_tasks_that_load_alike_share_one(models: Models) -> None:
    asked = [
        ("tiny-image", "text-to-image"),
        ("tiny-video", "text-to-video"),
        ("tiny-fill", "inpaint"),
    ]
    first = [models.get(*one) for one in asked]
    assert all(models.get(*one) is pipeline for one, pipeline in zip(asked, first, strict=True))
    assert models.get("tiny-image", "image-to-image") is first[0]


def test_a_model_that_needs_the_room_of_others_gets_it(
    models: Models, models_dir: Path, catalog: Catalog
) -> None:
    """A file of 10 TB, all hole: nothing else may stay beside it, and it is no model."""
    kept = models.get("tiny-image", "text-to-image")
    folder = models_dir / "absent"
    folder.mkdir()
    try:
        with (folder / "model.safetensors").open("wb") as file:
            os.truncate(file.fileno(), 10**13)
        with pytest.raises(ModelLoadFailed, match="absent"):
            models.get("absent", "text-to-image")
    finally:
        (folder / "model.safetensors").unlink()
        folder.rmdir()
    assert models.get("tiny-image", "text-to-image") is not kept, "it was evicted"


def test_a_prompt_is_encoded_once(models: Models) -> None:
    pipeline = models.get("tiny-image", "text-to-image")
    encoded: list[Any] = []
    handle = pipeline.text_encoder_2.register_forward_hook(lambda *_: encoded.append(1))
    try:
        with torch.no_grad():
            one, *_ = pipeline.encode_prompt("a red circle", max_sequence_length=64)
            same, *_ = pipeline.encode_prompt("a red circle", max_sequence_length=64)
            other, *_ = pipeline.encode_prompt("a blue circle", max_sequence_length=64)
            assert len(encoded) == 2
            assert torch.equal(one, same) and not torch.equal(one, other)
            for number in range(ENTRIES):
                pipeline.encode_prompt(str(number), max_sequence_length=64)
            pipeline.encode_prompt("a red circle", max_sequence_length=64)
    finally:
        handle.remove()
    assert len(encoded) == 2 + ENTRIES + 1, "and forgotten in its turn"
