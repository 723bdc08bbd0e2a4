"""What chaos.py holds the fleet to: records, the stream of events, manifests and their bytes."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Any

import httpx
import redis

from cli.client import Client
from jobs.artifacts import ArtifactStorage, manifest_key
from jobs.settings import load_settings

moment = datetime.fromisoformat
ENDS = {"succeeded", "failed", "canceled", "expired"}
# How a job of each kind may end. By chance alone a plain one can be hit three times.
MAY = {
    "plain": {"succeeded", "failed"},
    "canceled": {"canceled", "succeeded", "failed"},
    "deadline": {"succeeded", "failed", "expired"},
    "poison": {"failed"},
    "oom": {"failed"},
    "hangs": {"failed"},
}
FAULTY = {"rank_died", "rank_hung", "poisoned"}  # a job that was hit too often
CODES = {
    "plain": FAULTY,
    "canceled": FAULTY,
    "deadline": {*FAULTY, "deadline_exceeded"},
    "poison": FAULTY,
    "hangs": FAULTY,
    "oom": {*FAULTY, "out_of_memory"},
}
# Three faults of its group, or three lost workers: five of both at most.
HITS = range(3, 6)
COUNTED = {"rank_died", "rank_hung", "worker_lost", "out_of_memory"}


@dataclass
class Case:
    """A job as it was asked for, and what became of it."""

    kind: str
    tenant: str
    body: dict[str, Any]
    key: str
    cancel_after_s: float
    id: str | None = None
    refused: bool = False
    born: float = 0.0
    cancel_answer: dict[str, Any] | None = None
    seqs: list[int] = field(default_factory=list)
    seen: str = "never"  # when it was last looked at: its state
    job: dict[str, Any] | None = None

    @property
    def over(self) -> bool:
        return self.refused or self.job is not None


def print_table(cases: list[Case], faults: Counter[str]) -> None:
    print(f"  faults: {dict(sorted(faults.items()))}")
    for kind in sorted({case.kind for case in cases}):
        ends = Counter(_status(case) for case in cases if case.kind == kind)
        print(f"  {kind} jobs: {dict(ends)}")
    jobs = [case.job for case in cases if case.job]
    attempts = Counter(job["attempt"] for job in jobs)
    print(f"  jobs by their number of attempts: {dict(sorted(attempts.items()))}")
    waits = defaultdict(list)
    for job in jobs:
        for attempt, following in pairwise(job["attempts"]):
            began, ended = (moment(following["started_at"]), moment(attempt["ended_at"]))
            waits[attempt["error"]["code"]].append((began - ended).total_seconds())
    print("  seconds from a failed attempt's end to the next one's begin: median, worst")
    for code, seconds in sorted(waits.items()):
        print(f"    {code:<14} {len(seconds):>4} {median(seconds):8.1f} {max(seconds):8.1f}")


def check(cases: list[Case], clients: dict[str, Client], environment: dict[str, str]) -> bool:
    wrong = [f"{case.kind} {case.id}: {what}" for case in cases for what in lives(case)]
    wrong += published(cases, clients, ArtifactStorage(load_settings(environment)))
    wrong += told(cases, environment["FLEET_REDIS_URL"])
    wrong += listed(cases, clients)
    hit = [case for case in cases if case.kind == "plain" and _status(case) == "failed"]
    print(f"  plain jobs that faults hit three times: {len(hit)}")
    for line in wrong:
        print(f"  WRONG {line}")
    print("sound" if not wrong else f"{len(wrong)} faults of ours")
    return not wrong


def lives(case: Case) -> Iterator[str]:
    """One end, a right one, and nothing that went back on the way."""
    if case.refused:
        if case.kind != "invalid":
            yield "refused"
        return
    if case.job is None:
        yield f"lost or stuck; seen {case.seen}"
        return
    if case.seqs != sorted(case.seqs):
        yield f"seq went back: {case.seqs}"
    status, error = case.job["status"], case.job["error"] or {}
    if status not in MAY.get(case.kind, set()):
        yield f"ended {status}"
    if status == "failed":
        code, hits = error["code"], [a for a in case.job["attempts"] if _code(a) in COUNTED]
        if code not in CODES[case.kind]:
            yield f"failed by {error}"
        if code in FAULTY and len(hits) not in HITS:
            yield f"given up after {len(hits)} faults: {error}"
    numbers = [attempt["number"] for attempt in case.job["attempts"]]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"attempts {numbers}"
    if case.cancel_answer and status == "succeeded":
        asked = case.cancel_answer
        settled = ("upload", None) if asked["attempt"] > 1 else ("upload",)
        if asked["status"] != "succeeded" and asked["progress"]["stage"] not in settled:
            yield f"succeeded, though it was {asked['status']} at {asked['progress']}"


def _code(attempt: dict[str, Any]) -> str:
    return str((attempt["error"] or {}).get("code"))


def listed(cases: list[Case], clients: dict[str, Client]) -> list[str]:
    """Those that faults ended, and no others, are listed as dead."""
    dead = {job["id"] for c in clients.values() for job in c.dead()}
    faulty = {*FAULTY, "out_of_memory"}
    return [
        f"{case.id} is{'' if case.id in dead else ' not'} listed as dead"
        for case in cases
        if case.job and (case.id in dead) != ((case.job["error"] or {}).get("code") in faulty)
    ]


def published(cases: list[Case], clients: dict[str, Client], storage: ArtifactStorage) -> list[str]:
    """A manifest for each success and for nothing else; the bytes that it names."""
    wrong = []
    for case in cases:
        if case.job is None or case.id is None:
            continue
        manifest = storage.read(manifest_key(case.id))
        there = manifest is not None and not json.loads(manifest).get("void")
        if there != (case.job["status"] == "succeeded"):
            wrong.append(f"{case.id} {case.job['status']}, manifest: {there}")
        if there:
            said = json.loads(manifest)
            bytes_said = [output["sha256"] for output in said["outputs"]]
            if bytes_said != [output["sha256"] for output in case.job["outputs"]]:
                wrong.append(f"{case.id} has a manifest of other outputs")
            if int(said["token"].split(":")[0]) > case.job["attempt"]:
                wrong.append(f"{case.id} was published by an attempt that is not in its record")
        again = clients[case.tenant].job(case.id)
        if again["seq"] != case.job["seq"]:
            wrong.append(f"{case.id} changed after its end")
        for output in again["outputs"]:
            content = httpx.get(output["download_url"]).content
            if hashlib.sha256(content).hexdigest() != output["sha256"]:
                wrong.append(f"{case.id} output {output['index']} has other bytes")
        prompts = case.body["input"]["prompt"]
        if there and len(again["outputs"]) != len(prompts):
            wrong.append(f"{case.id} has {len(again['outputs'])} of {len(prompts)} outputs")
    return wrong


def told(cases: list[Case], redis_url: str) -> list[str]:
    """The stream of events: each job's seq rises, it ends once, and that is its last word."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as direct:
        events = direct.xrange("fleet:events")
    by_job = defaultdict(list)
    for _, event in events:
        by_job[event["job"]].append(event)
    wrong = []
    for case in cases:
        words = by_job.get(case.id or "", [])
        seqs = [int(event["seq"]) for event in words]
        ends = [i for i, event in enumerate(words) if event["kind"] in ENDS]
        if case.job and (ends != [len(words) - 1] or seqs != sorted(set(seqs))):
            wrong.append(f"{case.id} told {[event['kind'] for event in words][-5:]}")
    return wrong


def _status(case: Case) -> str:
    return "refused" if case.refused else str(case.job["status"]) if case.job else "no end"
