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
    """The plan of a lane of `ranks` ranks, on every such lane at once."""
    lanes, spec = fleet.group.size // ranks, fleet.catalog[model]
    question: dict[str, Any] = {
        "prompt": "warm",
        "seed": 0,
        "n": lanes,
        "num_inference_steps": STEPS,
    }
    question |= dict.fromkeys({"image", "mask"} & input_fields(spec.tasks[0]), BLANK)
    request, _ = parse_request({"model": model, "input": question}, fleet.catalog)
    one = request.model_copy(update={"input": request.input.model_copy(update={"n": 1})})
    choice = choose(spec, one, ranks, room=fleet.room(spec))
    if choice is None:  # a wider lane will do
        return
    plan = replace(choice.plan, data=fleet.group.size // choice.plan.replica_width)
    folder = fleet.settings.spool / f"warm-{model}"
    stream = fleet.group.run(
        f"warm-{model}",
        request.model_dump_json(),
        items(request),
        plan,
        range(fleet.group.size),
        folder,
        threading.Event(),
    )
    try:
        for _event in stream:
            pass
    finally:
        shutil.rmtree(folder, ignore_errors=True)
