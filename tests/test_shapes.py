"""The model that comes with the worker: its data, its training, what the fleet draws with it."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from PIL import Image
from transformers import AutoTokenizer

from examples.shapes import evaluate, train
from examples.shapes.data import SIDE, Scene, draw, random_caption, random_scene, vocabulary
from examples.shapes.detect import Seen, detect
from examples.shapes.evaluate import held_out_scenes, scores
from examples.shapes.model import embed, short_text, tokenizer, words_of
from examples.shapes.training import Training
from tests.conftest import ROOT, RunningFleet

SHIPPED = ROOT / "worker" / "rank" / "weights" / "shapes"


def clips_of(scenes: list[Any]) -> np.ndarray:
    clips = draw(scenes, torch.Generator().manual_seed(0))
    return ((clips + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()


def test_the_detectors_see_what_the_generator_drew() -> None:
    scenes = held_out_scenes(20)
    clips = clips_of(scenes)
    assert set(scores(scenes, clips).values()) == {1.0}
    assert max(scores(scenes[1:], clips[:-1]).values()) < 0.5, "and nothing that it did not"


def test_the_detectors_see_no_shape_where_there_is_none() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    assert detect(noise).shape is None
    flat = np.full((5, SIDE, SIDE, 3), (40, 80, 220), np.uint8)
    assert detect(flat) == Seen(None, "blue", None, None)


def clip(shape: str = "square", colour: str = "red", motion: str = "still") -> np.ndarray:
    return clips_of([Scene(shape, colour, "white", motion, "large")])[0]


def two_halves(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.concatenate([first[:13], second[13:]])


def painted(rgb: tuple[int, int, int], half: bool = False) -> np.ndarray:
    frames = clip()
    inside = (frames < 200).any(-1)
    if half:
        inside &= np.indices(inside.shape)[2] < np.nonzero(inside)[2].mean()
    return np.where(inside[..., None], np.uint8(rgb), frames)


@pytest.mark.parametrize(
    "frames,what",
    [
        (np.concatenate([clip()[:24], np.roll(clip()[24:], 30, 2)]), "motion"),
        (
            np.where(np.arange(25)[:, None, None, None] % 2, clip(), np.roll(clip(), 20, 2)),
            "motion",
        ),
        (np.concatenate([clip(motion="right")[:20], clip(motion="left")[20:]]), "motion"),
        (two_halves(clip("circle"), clip("star")), "shape"),
        (np.concatenate([clip("circle")[:20], clip("star")[20:]]), "shape"),
        (two_halves(clip("diamond"), clip("square")), "shape"),
        (two_halves(clip(), clip(colour="green")), "colour"),
        (painted((40, 165, 70), half=True), "colour"),
        (painted((128, 128, 128)), "colour"),
        (painted((120, 80, 40)), "colour"),
    ],
)
def test_the_detectors_are_not_to_be_fooled(frames: np.ndarray, what: str) -> None:
    assert getattr(detect(frames), what) is None


def test_a_shorter_clip_is_the_beginning_of_a_longer_one() -> None:
    scenes = held_out_scenes(8)
    long = draw(scenes, torch.Generator().manual_seed(3))
    short = draw(scenes, torch.Generator().manual_seed(3), frames=9)
    assert torch.equal(long[:, :, :9], short)


def test_what_is_held_out_is_never_trained_on_and_every_word_is_known() -> None:
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(500)]
    assert not any(scene.held_out for scene in scenes)
    assert all(scene.held_out for scene in held_out_scenes(200))
    words = tokenizer()
    captions = [random_caption(scene, rng).replace("<unk>", "") for scene in scenes]
    ids = words([*captions, *(scene.caption.upper() for scene in scenes)]).input_ids
    assert words.unk_token_id not in {id for caption in ids for id in caption}
    assert {len(words(word).input_ids) for word in vocabulary()} == {2}, "the word and the end"
    assert words("an orange ring").input_ids == words("a orange ring").input_ids
    shipped = AutoTokenizer.from_pretrained(SHIPPED / "tokenizer")
    assert shipped.get_vocab() == words.get_vocab()


def test_the_short_text_of_the_training_is_the_long_one_of_the_pipeline() -> None:
    pipeline = WanPipeline.from_pretrained(SHIPPED, dtype=torch.float32)
    captions = ["a red circle moving left on a blue background", "a star", ""]
    latents, times = torch.randn(3, 16, 2, 16, 16), torch.tensor([900.0, 500.0, 100.0])

    def flow(text: torch.Tensor) -> torch.Tensor:
        return pipeline.transformer(
            latents, timestep=times, encoder_hidden_states=text, return_dict=False
        )[0]

    with torch.no_grad():
        text, _ = pipeline.encode_prompt(captions, None, False, max_sequence_length=512)
        usual = flow(text)
        with short_text(pipeline.transformer) as processor:
            short, processor.bias = embed(pipeline, words_of(pipeline, captions, latents.device))
            assert (flow(short) - usual).abs().max() < 1e-4
        assert torch.equal(flow(text), usual), "and the pipeline is as before"


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    def train(file: Path, until: float) -> tuple[bool, torch.Tensor]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 4)
        training = Training(file, [layer], 25, 1e-2, 0.9)
        training.limit(until)

        def loss_of(step: int) -> torch.Tensor:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            return (layer(x) - x).square().mean()

        return training.run(loss_of), layer.weight.detach()

    whole, weights = train(tmp_path / "a.pt", float("inf"))
    runs = [train(tmp_path / "b.pt", time.monotonic()) for _ in range(3)]
    assert whole and [finished for finished, _ in runs] == [False, False, True]
    assert torch.equal(runs[-1][1], weights)


def test_a_training_ends_when_its_seconds_are_spent(tmp_path: Path) -> None:
    layer = torch.nn.Linear(1, 1)
    training = Training(tmp_path / "a.pt", [layer], 10**9, 1e-2, 0.9)
    training.limit(budget_s=0.2)
    assert training.run(lambda _step: layer(torch.ones(1)).sum())
    assert 0 < training.done < 10**9


def test_a_training_leaves_a_pipeline_that_the_evaluation_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every stage on a CPU, a few steps each; then again, from what the stages left."""
    few = [str(tmp_path), "--sketch", "--batch", "2", "--clips", "2"]
    for steps in ("1", "2"):
        train.main([*few, "--steps", steps])
    sheet = tmp_path / "sheet.png"
    model = str(tmp_path / "model")
    evaluate.main([model, "--prompts", "1", "--steps", "2", "--sheet", str(sheet)])
    told = capsys.readouterr().out
    assert "transformer 2 loss" in told and told.count("all of it 0.0%") == 4
    with Image.open(sheet) as page:
        assert page.width > 1000


def test_the_weights_are_small_and_come_in_shards() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) < 14e6
    assert len(list((SHIPPED / "transformer").glob("*-of-*.safetensors"))) >= 2
    assert (SHIPPED / "transformer" / "diffusion_pytorch_model.safetensors.index.json").exists()
    assert not list(SHIPPED.rglob("*.bin"))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    """As a user gets it: the packaged catalogue, no models folder; four ranks, and warm."""
    folder = tmp_path_factory.mktemp("shapes")
    catalogue = str(ROOT / "jobs" / "models.toml")
    settings = {"FLEET_MODELS": catalogue, "FLEET_PRELOAD": "shapes"}
    fleet = RunningFleet(folder, folder / "none", "--ranks", "4", "--no-flower", **settings)
    yield fleet
    fleet.stop()


def test_a_preloaded_model_is_warm_on_every_lane_before_the_first_job(fleet: RunningFleet) -> None:
    for rank in range(4):
        log = (fleet.data / "logs" / f"rank-{rank}.log").read_text()
        assert "job=warm-shapes stage=load_model" in log and "loading shapes" in log
        assert log.count("job=warm-shapes stage=denoise step=2/2") == 3, "alone, in pairs, all four"
    assert not list((fleet.data / "spool").glob("warm*"))


def frames_of(video: Path) -> np.ndarray:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(video)]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    pixels = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(pixels, np.uint8).reshape(-1, SIDE, SIDE, 3)


PROMPTS = {
    "a red circle moving left on a blue background": Seen("red", "blue", "circle", "left"),
    "a large white circle moving right on a green background": Seen(
        "white", "green", "circle", "right"
    ),
    "a medium pink diamond moving down on a yellow background": Seen(
        "pink", "yellow", "diamond", "down"
    ),
}


def test_the_fleet_draws_what_it_is_asked(fleet: RunningFleet, tmp_path: Path) -> None:
    assert fleet.client.call("GET", "/v1/models")["data"][0]["id"] == "shapes", "the default"
    job = fleet.wait(fleet.submit("shapes", list(PROMPTS), seed=1), 180)
    assert job["status"] == "succeeded", job["error"]
    for output, asked in zip(job["outputs"], PROMPTS.values(), strict=True):
        fleet.client.fetch(job["id"], output, tmp_path / "clip.mp4")
        clip = frames_of(tmp_path / "clip.mp4")
        assert clip.shape == (25, SIDE, SIDE, 3)
        assert detect(clip) == asked


PLANS = [
    {"data": 1},
    {"data": 2},
    {"cfg": 2},
    {"ulysses": 2},
    {"cfg": 2, "ulysses": 2},
    {"data": 2, "cfg": 2},
    {"data": 2, "ulysses": 2},
    {"ulysses": 4},
]


def test_every_plan_draws_the_same_video(fleet: RunningFleet) -> None:
    asked = {"seed": 5, "num_frames": 5, "num_inference_steps": 4}
    ids = [fleet.submit("shapes", ["a star", "a ring"], parallel=p, **asked) for p in PLANS]
    jobs = [fleet.wait(id, 120) for id in ids]
    plans = [
        {axis: job["plan"][axis] for axis in plan} for job, plan in zip(jobs, PLANS, strict=True)
    ]
    assert plans == PLANS
    assert len({tuple(output["sha256"] for output in job["outputs"]) for job in jobs}) == 1


def test_a_picture_is_the_one_of_plain_diffusers(fleet: RunningFleet, tmp_path: Path) -> None:
    """No line of ours is needed to load and run the model; and both tasks share one pipeline."""
    prompt = "a large green heart on a white background"
    fleet.wait(fleet.submit("shapes", prompt, num_frames=5, num_inference_steps=1), 120)
    id = fleet.submit("shapes", prompt, seed=9, task="text-to-image", num_inference_steps=4)
    job = fleet.wait(id, 120)
    fleet.client.fetch(job["id"], job["outputs"][0], tmp_path / "ours.png")
    script = """
import sys, torch
from diffusers import WanPipeline
torch.set_num_threads(1)
pipe = WanPipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
pipe(sys.argv[2], height=128, width=128, num_frames=1, num_inference_steps=4, guidance_scale=3.0,
     generator=torch.Generator().manual_seed(9), output_type="pil").frames[0][0].save(sys.argv[3])
"""
    arguments = [str(SHIPPED), prompt, str(tmp_path / "plain.png")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)
    ours, plain = (
        np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("ours.png", "plain.png")
    )
    assert np.abs(ours - plain).max() <= 1, "PIL and our encoder round differently"
    log = (fleet.data / "logs" / "rank-0.log").read_text()
    assert log.count("loading shapes") == 1
