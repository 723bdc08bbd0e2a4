"""Two workers under random faults: each accepted job must end once, each success be published once.

`python -m benchmarks.chaos --seed 1`. Valkey, SeaweedFS, the API and two workers of two ranks each
on this machine, the tests' models, a fault every 1-3 s. Prints a table; exit code 1 if a job is
lost, stuck, ended or published twice, or a process is left. The same seed gives the same jobs and
the same order of faults; what they hit depends on the machine's pace.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import redis

from benchmarks.faults import FAULTS
from benchmarks.plain_celery import send_all, verdict
from benchmarks.site import TENANTS, Site
from benchmarks.verdict import Case, check, print_table
from cli.client import FINAL, ApiError, Client

# Of a hundred jobs.
KINDS = {
    **{"plain": 76, "canceled": 8, "deadline": 5, "invalid": 5},
    **{"poison": 2, "oom": 2, "hangs": 2},
}

BATCH = 10  # of the plain jobs, that come in one request
ASLEEP_S = 24  # the longest that a fault has somebody sleep, and a little


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--jobs", type=int, default=200)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--faults", type=int, default=150, help="at most; then it may end")
    options.add_argument("--every", type=float, nargs=2, default=(1.0, 3.0), metavar="S")
    options.add_argument("--storage", choices=["s3", "file"], default="s3")
    options.add_argument("--bound-s", type=float, default=480, help="for the end, after them")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as data:
        site = Site(Path(data), s3=asked.storage == "s3")
        try:
            good = storm(site, asked)
        finally:
            left = site.down()
    print(f"processes left: {len(left)}", *(" ".join(p.cmdline())[:120] for p in left), sep="\n  ")
    sys.exit(not good or bool(left))


def storm(site: Site, asked: argparse.Namespace) -> bool:
    chance = random.Random(asked.seed)
    kinds = chance.sample(list(KINDS), len(KINDS))  # one of each first
    kinds += chance.choices(list(KINDS), list(KINDS.values()), k=asked.jobs)
    cases = [case(chance, kind) for kind in kinds[: asked.jobs]]
    lottery = [name for name, (tickets, _) in FAULTS.items() for _ in range(tickets)]
    first = chance.sample(list(FAULTS), len(FAULTS))
    # Apart from the jobs' dice: those are thrown by another thread.
    submitting = threading.Thread(target=submit_all, args=(site.clients, cases), daemon=True)
    beside = threading.Thread(target=send_all, args=(asked.jobs, site.broker), daemon=True)
    beside.start()
    began, faults = time.monotonic(), Counter[str]()
    chance_free = random.Random()  # what is looked at first decides nothing
    submitting.start()
    last = next_at = began
    tried = 0
    while time.monotonic() < last + asked.bound_s:
        now = time.monotonic()
        if tried < asked.faults and now >= next_at:
            name = first.pop() if first else chance.choice(lottery)
            dice = random.Random(chance.random())
            with contextlib.suppress(psutil.NoSuchProcess, redis.RedisError):  # gone already
                faults[name] += FAULTS[name][1](site, dice)
            tried += 1
            last, next_at = now, now + chance.uniform(*asked.every)
        waiting = [each for each in cases if each.id and not each.over]
        for each in chance_free.sample(waiting, min(20, len(waiting))):
            look(site.clients[each.tenant], each)
        if not submitting.is_alive() and all(each.over for each in cases):
            break
        time.sleep(0.2)
    whole = False
    while not whole and time.monotonic() < last + asked.bound_s:
        time.sleep(0.5)
        whole = site.ready()
    time.sleep(max(0, last + ASLEEP_S - time.monotonic()))  # who sleeps may publish when it wakes
    print(f"seed {asked.seed}: {asked.jobs} jobs, {time.monotonic() - began:.0f} s, ", end="")
    print(f"{time.monotonic() - last:.0f} s of them after the last of {faults.total()} faults")
    print_table(cases, faults)
    print(f"  {verdict(asked.jobs, site.broker, site.published)}")
    print(f"  the fleet is{'' if whole else ' NOT'} whole again")
    return check(cases, site.clients, site.environment) and whole


def case(chance: random.Random, kind: str) -> Case:
    model = {"poison": "dies", "oom": "oom", "hangs": "hangs"}.get(
        kind, chance.choice(["tiny-video", "tiny-image"])
    )
    prompts: list[str] = [f"a {n}" for n in range(chance.choice([1, 1, 2, 3]))]
    question: dict[str, Any] = {"prompt": prompts, "num_inference_steps": chance.randint(4, 30)}
    body: dict[str, Any] = {"model": model, "input": question}
    body["priority"] = chance.choice(["high", "normal", "normal", "low"])
    body["parallel"] = chance.choice(["auto", "auto", {"data": 2}, {"ulysses": 2}])
    if kind in ("poison", "oom", "hangs"):
        question["prompt"], body["parallel"] = "always", {"ulysses": 2}
    if kind == "deadline":
        body["deadline_s"] = chance.choice([1, 3, 10])
        body["priority"] = "high"  # or it would pass in the queue
    if kind == "invalid":
        question["num_inference_steps"] = -1
    tenant = chance.choices(TENANTS, (6, 3, 1))[0]
    return Case(kind, tenant, body, f"chaos-{chance.getrandbits(64):x}", chance.uniform(0, 20))


def submit_all(clients: dict[str, Client], cases: list[Case]) -> None:
    """Each until the API has answered: the key makes it one job however often it is sent."""
    tenant = cases[0].tenant
    together = [each for each in cases if (each.kind, each.tenant) == ("plain", tenant)][:BATCH]
    bodies = [each.body for each in together]
    batch = insist(clients[tenant], "/v1/batches", {"jobs": bodies}, f"batch of {together[0].key}")
    for each, id in zip(together, batch["jobs"], strict=True):
        each.id, each.born = id, time.monotonic()
    for each in cases:
        if each.id is None:
            try:
                each.id = insist(clients[each.tenant], "/v1/jobs", each.body, each.key)["id"]
                each.born = time.monotonic()
            except ApiError:
                each.refused = True


def insist(client: Client, path: str, body: Any, key: str) -> Any:
    """Raises: ApiError, if it is refused."""
    while True:
        try:
            return client.call("POST", path, json=body, headers={"Idempotency-Key": key})
        except ApiError as error:
            if 400 <= error.status < 500:
                raise
            time.sleep(0.5)


def age_s(each: Case) -> float:
    return time.monotonic() - each.born


def look(client: Client, each: Case) -> None:
    if each.id is None or each.over:
        return
    try:
        due = age_s(each) > each.cancel_after_s
        if each.kind == "canceled" and due and not each.cancel_answer:
            each.cancel_answer = client.call("POST", f"/v1/jobs/{each.id}/cancel")
        job = client.job(each.id)
    except ApiError:
        return
    each.seqs.append(job["seq"])
    each.seen = f"{job['status']} {job['progress']['stage']} after {age_s(each):.0f} s"
    if job["status"] in FINAL:
        each.job = job


if __name__ == "__main__":
    main()
