"""Models in a rank's memory: loaded once, kept while there is room."""

import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from PIL import Image
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import UMT5Config, UMT5EncoderModel

from cli.servers import free_port
from jobs.catalog import Catalog, OwnField
from jobs.errors import ModelLoadFailed
from jobs.weights import encoder_bytes, weights_bytes
from tests.conftest import ROOT
from worker.rank.embeddings import ENTRIES, remember_prompts
from worker.rank.models import Models
from worker.rank.parallel.encoder import even_map, wait_for

CPU = torch.device("cpu")


def write_weights(
    folder: Path, part: str, numbers: int, name: str = "model.safetensors", index: bool = True
) -> None:
    """A header that promises so many numbers, and none of them."""
    (folder / part).mkdir(parents=True, exist_ok=True)
    promise = {"w": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}
    header = json.dumps(promise).encode()
    (folder / part / name).write_bytes(len(header).to_bytes(8, "little") + header)
    if index:
        (folder / "model_index.json").write_text(json.dumps({part: ["diffusers", "X"]}))


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def models(catalog: Catalog, models_dir: Path) -> Models:
    return Models(catalog, models_dir, CPU)


def test_a_field_that_its_pipeline_does_not_take_is_a_model_that_does_not_load(
    catalog: Catalog, models_dir: Path
) -> None:
    own = {"extra": {"guidance_scale_9": OwnField(type="number", default=1)}}
    wrong = catalog["tiny-video"].model_copy(update=own)
    with pytest.raises(ModelLoadFailed, match="WanPipeline takes no 'guidance_scale_9'"):
        Models({wrong.id: wrong}, models_dir, CPU).get(wrong.id, "text-to-video")


def test_a_shared_model_is_made_of_the_shares_that_were_loaded(models: Models) -> None:
    mesh = init_device_mesh("cpu", (1,))
    for asked in (("tiny-video", "text-to-video"), ("tiny-image", "text-to-image")):
        pipeline = models.get(*asked, mesh)
        weights = list(pipeline.transformer.parameters())
        assert any(isinstance(weight, DTensor) for weight in weights)


def test_what_is_evicted_is_freed_at_once(models: Models) -> None:
    pipeline = weakref.ref(models.get("tiny-image", "text-to-image"))
    assert pipeline() is not None
    models.clear()
    assert pipeline() is None


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
    """Weights of 10 TB, says the header, and there are none: nothing else may stay beside them."""
    kept = models.get("tiny-image", "text-to-image")
    folder = models_dir / "absent"
    write_weights(folder, "transformer", 10**13 // 4)
    try:
        assert weights_bytes(str(folder), "float32") >= 10**13 - 4
        with pytest.raises(ModelLoadFailed, match="absent"):
            models.get("absent", "text-to-image")
    finally:
        shutil.rmtree(folder)
    assert models.get("tiny-image", "text-to-image") is not kept, "it was evicted"


def test_a_hub_that_is_away_is_not_a_model_that_is_wrong(tmp_path: Path) -> None:
    """The hub's name and the way to it are read from the environment, once, by its library."""
    code = """
import torch
from pathlib import Path
from jobs.catalog import load_catalog
from jobs.errors import ModelUnavailable
from jobs.settings import load_settings
from worker.rank.models import Models
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
models = Models(load_catalog(load_settings().models), Path("/none"), torch.device("cpu"))
try:
    models.get("flux.1-schnell", "text-to-image")
except ModelUnavailable as error:
    print(error)
"""
    away = {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    own = {**os.environ, **away}
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=True)
    assert "flux.1-schnell can't be loaded" in done.stdout


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_a_spread_encoder_has_about_as_much_on_each_device(ranks: int) -> None:
    sizes = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    with init_empty_weights():
        model = UMT5EncoderModel(UMT5Config(vocab_size=256384, **sizes))
    model.tie_weights()
    places = even_map(model, range(ranks))
    share = [0] * ranks
    for name, weights in model.named_parameters():
        (place,) = [places[part] for part in places if f"{name}.".startswith(f"{part}.")]
        share[place] += weights.numel()
    largest = max(p.numel() for p in model.parameters())
    assert max(share) <= sum(share) / ranks + largest and min(share) > 0


def test_second_copies_of_weights_are_not_counted(tmp_path: Path) -> None:
    write_weights(tmp_path, "text_encoder", 300)
    write_weights(tmp_path, "text_encoder", 300, "model.fp16.safetensors")
    write_weights(tmp_path, "transformer", 1000)
    (tmp_path / "model_index.json").write_text(
        json.dumps({"text_encoder": ["t", "X"], "transformer": ["d", "X"]})
    )
    assert encoder_bytes(str(tmp_path), "bfloat16") == 600
    assert weights_bytes(str(tmp_path), "bfloat16") == 2600


def test_two_pipelines_of_one_model_have_services_of_their_own(models: Models) -> None:
    """Evicting one ends its service, not the other's."""
    keys = []
    for task in ("text-to-video", "text-to-image"):
        models.get("tiny-two-loaders", task, None, (0,))
        keys.append(models.key("tiny-two-loaders", task, None, (0,)))
    assert len({key.address for key in keys}) == 2
    models.shrink()
    wait_for(keys[1].address, lambda: pytest.fail("nobody is there"))
    with pytest.raises(TimeoutError):
        wait_for(keys[0].address, _give_up)
    models.clear()


def _give_up() -> None:
    raise TimeoutError


def test_the_bytes_of_a_model_are_those_of_its_components_in_the_type_that_they_are_loaded_in(
    tmp_path: Path,
) -> None:
    write_weights(tmp_path, "transformer", 1000)
    write_weights(tmp_path, "transformer", 1000, "diffusion_pytorch_model.fp16.safetensors")
    write_weights(tmp_path, "not-in-the-index", 1000, index=False)
    shutil.copy(tmp_path / "transformer" / "model.safetensors", tmp_path / "whole.safetensors")
    assert weights_bytes(str(tmp_path), "float32") == 4000
    assert weights_bytes(str(tmp_path), "bfloat16") == 2000
    assert weights_bytes("nobody/has-this", "bfloat16") == 0
    assert weights_bytes(str(tmp_path / "absent"), "bfloat16") == 0


def test_a_prompt_with_a_picture_is_not_remembered() -> None:
    class Pipeline:
        def encode_prompt(self, prompt: str, image: Any) -> Any:
            return prompt, image

    pipeline = Pipeline()
    remember_prompts(pipeline)
    for colour in range(3):  # the same address, as often as not
        picture = Image.new("L", (1, 1), colour)
        assert pipeline.encode_prompt("x", image=[picture])[1][0] is picture


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
