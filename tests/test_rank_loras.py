"""LoRAs and fields of a model's own, on a real group: what plain diffusers draws with them, in
every plan, and nothing of them afterwards."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.catalog import Catalog
from jobs.errors import JobError
from jobs.settings import Settings
from tests.conftest import CATALOG, ROOT
from tests.fixtures.bench import Bench
from worker.group import Group
from worker.plan import Plan
from worker.protocol import Said

BOTH = [{"name": "sharp", "scale": 0.7}, {"name": "soft-1.0"}]


@pytest.fixture(scope="module")
def group(rank_settings: Settings) -> Iterator[Group]:
    """Its files say nothing of the request, so that the same pictures are the same bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEET_EMBED_PARAMETERS", "0")
        group = Group(2, replace(rank_settings, embed_parameters=False))
        group.start()
        yield group
        group.stop()


@pytest.fixture
def bench(group: Group, catalog: Catalog, tmp_path: Path) -> Bench:
    return Bench(group, catalog, tmp_path)


def test_every_plan_draws_the_same_with_them_and_nothing_of_them_is_left(bench: Bench) -> None:
    def run(plan: Plan, **more: Any) -> dict[int, str]:
        return bench.run("tiny-video", plan, prompt=["a", "b"], **more)

    bare, worn = run(Plan()), run(Plan(), loras=BOTH)
    assert not set(bare.values()) & set(worn.values())
    for plan in (Plan(data=2), Plan(ulysses=2), Plan(cfg=2), Plan(ring=2)):
        assert run(plan, loras=BOTH) == worn, plan
        assert run(plan) == bare, plan
    assert run(Plan(data=2), loras=[{"name": "sharp", "scale": 0}]) == bare
    assert run(Plan(), loras=BOTH[:1]) not in (bare, worn)


def test_shared_weights_draw_the_same_with_them_but_for_rounding(bench: Bench) -> None:
    """Half of the rows may be another matrix product: it depends on the CPU."""

    def drawn(plan: Plan, *names: str) -> np.ndarray[Any, Any]:
        bench.run("tiny-image", plan, loras=[{"name": name} for name in names])
        return np.asarray(Image.open(bench.files()[0]["path"])).astype(int)

    shared = Plan(ulysses=2, shard=True)
    bare, worn = drawn(shared), drawn(shared, "style")
    assert np.array_equal(drawn(shared), bare), "nothing of them is left"
    assert np.abs(worn - drawn(Plan(), "style")).max() <= 1
    assert np.abs(bare - drawn(Plan())).max() <= 1 < np.abs(worn - bare).max()


PLAIN = """
import sys, torch
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
model, lora, out, more = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(model)
pipe.load_lora_weights(lora, adapter_name="x")
pipe.set_adapters(["x"], [0.8])
pipe("a red circle", height=64, width=64, num_inference_steps=4, **eval(more),
     generator=torch.Generator().manual_seed(5)).images[0].save(out)
"""


@pytest.mark.parametrize(
    ("model", "lora", "theirs", "extra"),
    [
        ("tiny-image", "image", {"guidance_scale": 3.5, "max_sequence_length": 64}, {}),
        ("tiny-sdxl", "sdxl", {"guidance_scale": 5.0}, {"guidance_rescale": 0.5}),
    ],
)
def test_the_picture_is_the_one_that_plain_diffusers_draws_text_encoder_and_all(
    bench: Bench,
    models_dir: Path,
    tmp_path: Path,
    model: str,
    lora: str,
    theirs: dict[str, Any],
    extra: dict[str, Any],
) -> None:
    def draw(**more: Any) -> np.ndarray[Any, Any]:
        bench.run(model, Plan(), prompt="a red circle", seed=5, extra=extra, **more)
        return np.asarray(Image.open(bench.files()[0]["path"]))

    before = draw()
    worn = draw(loras=[{"name": "style", "scale": 0.8}])
    out = tmp_path / "plain.png"
    paths = [str(models_dir / model), str(models_dir / "loras" / lora), str(out)]
    asked = repr({**theirs, **extra})
    subprocess.run([sys.executable, "-c", PLAIN, *paths, asked], check=True, capture_output=True)
    assert np.array_equal(worn, np.asarray(Image.open(out)))
    assert not np.array_equal(worn, before)
    assert np.array_equal(draw(), before)


def test_a_model_with_two_denoisers_wears_one_on_each(bench: Bench) -> None:
    worn = [
        bench.run("tiny-video-2", Plan(cfg=2), num_inference_steps=8, loras=loras)[0]
        for loras in ([], [{"name": "first"}], [{"name": "both"}], [])
    ]
    assert len(set(worn)) == 3 and worn[0] == worn[3]


def test_a_field_of_the_models_own_reaches_its_pipeline(bench: Bench) -> None:
    run = [
        bench.run("tiny-video-2", Plan(ulysses=2), num_inference_steps=8, extra=extra)[0]
        for extra in ({}, {"guidance_scale_2": 5}, {"guidance_scale_2": 1.5})
    ]
    assert run[0] == run[1] != run[2]


@pytest.mark.parametrize(
    ("model", "name", "sentence"),
    [
        ("tiny-video", "absent", "there is no pytorch_lora_weights"),
        ("tiny-video", "foreign", "foreign"),
        ("tiny-video-2", "half", "second.safetensors has nothing"),
        ("tiny-image", "widens", "changes the model's own layers"),
        ("tiny-image", "norms", "changes the model's own layers"),
    ],
)
def test_one_that_can_not_be_worn_is_a_sentence_and_leaves_nothing(
    bench: Bench, model: str, name: str, sentence: str
) -> None:
    bare = bench.run(model, Plan(ulysses=2))
    with pytest.raises(JobError, match=sentence) as caught:
        bench.run(model, Plan(ulysses=2), loras=[{"name": name}])
    assert caught.value.code == "model_load_failed" and "/" not in str(caught.value)
    assert bench.run(model, Plan(ulysses=2)) == bare


def test_one_that_was_trained_with_dropout_draws_the_same_each_time(bench: Bench) -> None:
    drawn = [bench.run("tiny-image", Plan(), loras=[{"name": "drops"}]) for _ in range(2)]
    bench.run("tiny-image", Plan())
    drawn.append(bench.run("tiny-image", Plan(ulysses=2), loras=[{"name": "drops"}]))
    assert drawn[0] == drawn[1] == drawn[2]


def test_one_that_fits_in_part_says_so_in_the_jobs_log(bench: Bench) -> None:
    bench.run("tiny-image", Plan(), loras=[{"name": "partly"}])
    said = " ".join(event.message for event in bench.events if isinstance(event, Said))
    assert "to_queue" in said


COUNT = """
import sys, torch
import torch.distributed as dist
from pathlib import Path
from jobs.catalog import load_catalog
from worker.rank.loras import Worn, wear
from worker.rank.models import Models

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
catalog, folder = load_catalog(Path(sys.argv[1])), Path(sys.argv[2])
models = Models(catalog, folder, torch.device("cpu"))
pipe = models.get("tiny-image", "text-to-image")
pipe.spec = pipe.spec.model_copy(update={"compiled": True})
pipe.transformer.requires_grad_(False)
pipe.transformer.compile_repeated_blocks(backend="eager", dynamic=False)
for scale in (None, 0.5, 0.6, 0.7, None):
    wanted = [Worn("u", *models.lora("tiny-image", "uneven"), scale)] if scale else []
    wear(pipe, wanted, lambda: None)
    pipe("x", height=64, width=64, num_inference_steps=1, output_type="latent")
    print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


def test_a_compiled_model_compiles_once_for_all_scales_and_blocks(models_dir: Path) -> None:
    """Counted where nothing but the guards decides: with the backend that leaves all as it is."""
    command = [sys.executable, "-c", COUNT, str(CATALOG), str(models_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    bare, *worn, last = map(int, done.stdout.split())
    assert worn == [2 * bare] * 3 and last == 2 * bare, "each kind of block once more, and no more"
