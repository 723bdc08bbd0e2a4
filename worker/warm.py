"""warm(): what the first jobs would wait for, done before the worker takes any."""

import logging
import shutil
import threading
import time
from dataclasses import replace
from typing import Any

from jobs.errors import FleetError
from jobs.parse import parse_request
from jobs.request import input_fields, items
from worker.fleet import Fleet
from worker.plan import divisors
from worker.planner import choose

logger = logging.getLogger(__name__)

STEPS = 2  # the second is not the first
BLANK = (  # a white pixel
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEA"
    "sTj2GgAAAABJRU5ErkJggg=="
)


def warm(fleet: Fleet) -> None:
    """Loads the models of FLEET_PRELOAD on every rank, and runs each plan that `auto` would take
    for a default question: loading, compilation and a plan's communicators are paid here.
    """
    for model in fleet.settings.preload:
        for ranks in divisors(fleet.group.size):
            began = time.monotonic()
            try:
                _run(fleet, model, ranks)
            except FleetError as error:  # its jobs will say so again, each with a sentence
                logger.error("%s is not warm on %d ranks: %s", model, ranks, error)
            logger.info("%s on %d ranks: warm in %.1f s", model, ranks, time.monotonic() - began)


def _run(fleet: Fleet, model: str, ranks: int) -> None:
    """The plan of a lane of `ranks` ranks, on every such lane."""
    size, spec = fleet.group.size, fleet.catalog[model]
    question: dict[str, Any] = {
        "prompt": "warm",
        "seed": 0,
        "n": size // ranks,
        "num_inference_steps": STEPS,
    }
    question |= dict.fromkeys({"image", "mask"} & input_fields(spec.tasks[0]), BLANK)
    request, _ = parse_request({"model": model, "input": question}, fleet.catalog)
    one = request.model_copy(update={"input": request.input.model_copy(update={"n": 1})})
    choice = choose(spec, one, ranks, room=fleet.room(spec))
    if choice is None:  # a wider lane will do
        return
    plan, lanes = replace(choice.plan, data=size // choice.plan.replica_width), [range(size)]
    if plan.spread_encoder:  # over a lane: it is another one on each
        request, plan = one, choice.plan
        lanes = [range(first, first + ranks) for first in range(0, size, ranks)]
    name = f"warm-{model}"
    folder = fleet.settings.spool / name
    asked = request.model_dump_json()
    try:
        for lane in lanes:
            calm = threading.Event()
            for _event in fleet.group.run(name, asked, items(request), plan, lane, folder, calm):
                pass
    finally:
        shutil.rmtree(folder, ignore_errors=True)
