"""A real group of two ranks on gloo, and everything that may befall it."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from jobs.catalog import Catalog
from jobs.errors import (
    GpuFault,
    GroupFault,
    Interrupted,
    JobError,
    ModelLoadFailed,
    OutOfMemory,
    RankDied,
    RankHung,
    SpoolFailed,
)
from jobs.settings import Settings
from tests.conftest import ROOT, alive, descendants, until
from tests.fixtures.bench import Bench, own_family, rank_pids, ready
from worker.group import Event, Group
from worker.plan import Plan
from worker.protocol import Ended, Progress

Notes = Callable[[str], list[str]]
TOGETHER = Plan(ulysses=2)
DEALT = Plan(data=2)


@pytest.fixture(scope="module")
def group(rank_settings: Settings) -> Iterator[Group]:
    group = Group(2, rank_settings)
    group.start()
    yield group
    family = own_family()
    group.stop()
    until(lambda: not alive(family), 60)


@pytest.fixture
def bench(group: Group, catalog: Catalog, tmp_path: Path) -> Bench:
    return Bench(group, catalog, tmp_path)


@pytest.mark.parametrize("model", ["tiny-video", "tiny-image"])
def test_the_same_seed_gives_the_same_bytes_in_every_plan(bench: Bench, model: str) -> None:
    prompts = ["a", "b", "c"]
    plans = [Plan(), DEALT, TOGETHER, DEALT, Plan(), TOGETHER]
    if model == "tiny-video":
        plans += [Plan(cfg=2), TOGETHER, Plan(cfg=2), DEALT]
    hashes = [bench.run(model, plan, prompt=prompts) for plan in plans]
    assert set(hashes[0]) == {0, 1, 2}, "three prompts on two ranks: none is lost"
    assert len(set(hashes[0].values())) == 3
    assert all(h == hashes[0] for h in hashes)


def test_the_picture_is_the_one_that_plain_diffusers_draws(bench: Bench, models_dir: Path) -> None:
    bench.run("tiny-image", TOGETHER, prompt="a red circle", seed=5)
    ours = np.asarray(Image.open(bench.files()[0]["path"]))
    script = """
import sys, torch, numpy
from diffusers import FluxPipeline
torch.set_num_threads(1)
pipe = FluxPipeline.from_pretrained(sys.argv[1])
image = pipe("a red circle", height=64, width=64, num_inference_steps=4, guidance_scale=3.5,
             max_sequence_length=64, generator=torch.Generator().manual_seed(5)).images[0]
image.save(sys.argv[2])
"""
    out = models_dir / "plain.png"
    arguments = [str(models_dir / "tiny-image"), str(out)]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)
    assert np.array_equal(ours, np.asarray(Image.open(out)))


def test_a_video_has_the_frames_that_were_asked_for(bench: Bench) -> None:
    bench.run("tiny-video", DEALT, num_frames=13, width=96, height=64, fps=12)
    file = bench.files()[0]
    assert (file["frames"], file["width"], file["height"], file["fps"]) == (13, 96, 64, 12)
    assert Path(file["path"]).read_bytes()[4:8] == b"ftyp"
    stages = [e.stage for e in bench.events if isinstance(e, Progress) and e.rank == 0]
    assert list(dict.fromkeys(stages)) == [
        "load_model", "text_encode", "denoise", "vae_decode", "encode_file",
    ]  # fmt: skip


def test_items_go_to_whoever_is_free(bench: Bench, notes: Notes) -> None:
    bench.run("sleeps", DEALT, prompt=["slow rank"] * 10)
    share = Counter(notes("sleeps"))
    assert sum(share.values()) == 10, "no item twice, none lost"
    assert share["0"] >= 7, "the rank that is four times as fast does most of them"


@pytest.mark.parametrize("plan", [TOGETHER, DEALT, Plan()])
def test_a_cancel_frees_the_ranks_within_two_steps(bench: Bench, plan: Plan) -> None:
    cancel_at: list[int] = []

    def on_event(event: Event) -> None:
        if bench.step(5)(event) and not cancel_at:
            cancel_at.append(5)
            bench.cancel.set()

    bench.run("counts", plan, on_event, prompt=["x"] * 5, num_inference_steps=100)
    assert bench.events[-1] == Ended(canceled=True)
    last = max(e.step for e in bench.events if isinstance(e, Progress) and e.index == 0)
    assert last <= 5 + 2
    bench.cancel.clear()
    assert len(bench.run("tiny-image", plan)) == 1, "and the group goes on"


@pytest.mark.parametrize("model", ["absent", "broken"])
def test_a_model_that_cannot_be_loaded_is_a_sentence_and_the_group_lives(
    bench: Bench, model: str
) -> None:
    before = rank_pids(bench.group)
    for plan in (TOGETHER, DEALT):
        with pytest.raises(ModelLoadFailed, match=model):
            bench.run(model, plan, prompt=["a", "b", "c"])
    assert len(bench.run("tiny-image", TOGETHER)) == 1
    assert rank_pids(bench.group) == before


def test_out_of_memory_before_the_collectives_keeps_the_group(bench: Bench) -> None:
    before = rank_pids(bench.group)
    for plan in (TOGETHER, DEALT):
        with pytest.raises(OutOfMemory, match="Rank 1"):
            bench.run("oom", plan, prompt=["early", "early"])
    assert len(bench.run("tiny-image", TOGETHER)) == 1
    assert rank_pids(bench.group) == before


def faulty(bench: Bench, kind: type[JobError], model: str, within_s: float) -> None:
    """The fault is told in time; the same question then succeeds on a new incarnation."""
    before, began = rank_pids(bench.group), time.monotonic()
    with pytest.raises(kind):
        bench.run(model, TOGETHER)
    assert time.monotonic() - began < within_s
    ready(bench.group)
    assert not set(rank_pids(bench.group)) & set(before)


def test_out_of_memory_in_the_collectives_restarts_the_group(bench: Bench) -> None:
    faulty(bench, OutOfMemory, "oom", 30)
    assert len(bench.run("tiny-image", TOGETHER)) == 1


def test_a_rank_that_dies_is_noticed_and_the_job_can_run_again(bench: Bench, notes: Notes) -> None:
    faulty(bench, RankDied, "dies", 30)
    assert len(bench.run("dies", TOGETHER)) == 1


def test_a_rank_that_hangs_is_noticed_by_the_step_watchdog(bench: Bench, notes: Notes) -> None:
    faulty(bench, RankHung, "hangs", 45)
    assert len(bench.run("hangs", TOGETHER)) == 1


def test_a_frozen_rank_is_noticed_by_the_step_watchdog(bench: Bench) -> None:
    frozen: list[int] = []

    def on_event(event: Event) -> None:
        if bench.step(3)(event) and not frozen:
            frozen.append(rank_pids(bench.group)[1])
            os.kill(frozen[0], signal.SIGSTOP)

    with pytest.raises(RankHung):
        bench.run("counts", TOGETHER, on_event, num_inference_steps=100)
    ready(bench.group)
    assert frozen[0] not in rank_pids(bench.group)


def test_a_rank_frozen_while_idle_is_noticed_however_much_it_is_sent(bench: Bench) -> None:
    """Sixty long prompts do not fit into the socket of a rank that reads nothing."""
    os.kill(rank_pids(bench.group)[1], signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(GroupFault):
        bench.run("counts", DEALT, prompt=["x" * 5000] * 60)
    assert time.monotonic() - began < 45
    ready(bench.group)
    assert len(bench.run("tiny-image", TOGETHER)) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_while_idle_is_replaced(bench: Bench, rank: int) -> None:
    before = rank_pids(bench.group)
    os.kill(before[rank], signal.SIGKILL)
    until(lambda: not bench.group.about()["ready"])
    ready(bench.group)
    assert not set(rank_pids(bench.group)) & set(before)
    assert len(bench.run("tiny-image", TOGETHER)) == 1


def test_an_agent_killed_in_mid_job_leaves_no_orphan_and_is_replaced(bench: Bench) -> None:
    family: list[psutil.Process] = []

    def on_event(event: Event) -> None:
        if bench.step(3)(event) and not family:
            family.extend(own_family())
            family[0].kill()

    with pytest.raises((RankDied, Interrupted)):  # whichever of its ends is seen first
        bench.run("counts", TOGETHER, on_event, num_inference_steps=100)
    until(lambda: not alive(family), 60)
    ready(bench.group)
    assert len(bench.run("tiny-image", TOGETHER)) == 1


def test_a_consumer_that_leaves_stops_the_computation(bench: Bench, catalog: Catalog) -> None:
    class Left(Exception):
        pass

    def leave(event: Event) -> None:
        if bench.step(2)(event):
            raise Left

    with pytest.raises(Left):
        bench.run("counts", TOGETHER, leave, num_inference_steps=100)
    assert len(bench.run("tiny-image", TOGETHER)) == 1


def test_a_disk_that_takes_no_more_is_a_fault_of_the_node(bench: Bench) -> None:
    before = rank_pids(bench.group)

    def bound(limit: int) -> None:
        for pid in before:
            bounds = (limit, resource.RLIM_INFINITY)
            psutil.Process(pid).rlimit(resource.RLIMIT_FSIZE, bounds)

    bound(100)
    try:
        with pytest.raises(SpoolFailed, match="File too large"):
            bench.run("tiny-image", DEALT)
    finally:
        bound(resource.RLIM_INFINITY)
    assert len(bench.run("tiny-image", DEALT)) == 1
    assert rank_pids(bench.group) == before, "and the group goes on"


def test_logs_say_rank_job_stage_step_and_memory(bench: Bench, rank_settings: Settings) -> None:
    bench.run("tiny-image", DEALT)
    line = (rank_settings.logs / "rank-0.log").read_text().splitlines()
    steps = [text for text in line if "stage=denoise step=2/4" in text]
    assert steps and "[rank 0]" in steps[-1] and "job=job_" in steps[-1] and "MiB" in steps[-1]


def test_kill_nine_of_the_worker_leaves_no_orphan(rank_settings: Settings) -> None:
    script = (
        "import time; from jobs.settings import load_settings; from worker.group import Group\n"
        "g = Group(2, load_settings()); g.start(); print('ready', flush=True); time.sleep(100)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None and owner.stdout.readline() == "ready\n"
    family = descendants(owner.pid)
    assert len(family) >= 4, "agent, forkserver and two ranks"
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until(lambda: not alive(family), 60)


def test_a_gpu_fault_on_a_lane_of_one_rank_restarts_the_group_too(
    bench: Bench, notes: Notes
) -> None:
    before = rank_pids(bench.group)
    with pytest.raises(GpuFault, match="CUBLAS_STATUS"):
        bench.run("shorts", Plan(), prompt="alone")
    ready(bench.group)
    assert not set(rank_pids(bench.group)) & set(before), "its context is of no use any more"
    assert len(bench.run("shorts", Plan(), prompt="alone")) == 1


def test_a_cancel_is_heard_while_the_ranks_start_anew(bench: Bench) -> None:
    bench.group.restart()
    assert not bench.group.wait_ready(lambda: True), "who leaves waits for nothing"
    bench.cancel.set()
    bench.run("counts", Plan(data=2))
    assert bench.events[-1] == Ended(canceled=True) and not bench.group.ready
    bench.cancel.clear()
    ready(bench.group)
