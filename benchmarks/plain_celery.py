"""Plain Celery as many services run it, acks_late and else its defaults: what chaos.py is beside.

A task "renders" for a moment and then publishes: a line with its number in PLAIN_PUBLISHED.
"""

import os
import random
import time
from collections import Counter
from pathlib import Path

import redis
from celery import Celery

app = Celery("plain", broker=os.environ.get("PLAIN_BROKER", ""))
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)


@app.task(name="plain.render", ignore_result=True)
def render(number: int) -> None:
    time.sleep(random.uniform(0.5, 3))
    with open(os.environ["PLAIN_PUBLISHED"], "a") as file:
        file.write(f"{number}\n")


def send_all(count: int, broker: str) -> None:
    """Each again until the broker has taken it."""
    app.conf.broker_url = broker
    for number in range(count):
        while True:
            try:
                render.apply_async((number,), retry=False)
                break
            except Exception:
                time.sleep(0.5)


def verdict(count: int, broker: str, published: Path, patience_s: int = 60) -> str:
    """Once its queue is empty and its workers have had time for the rest."""
    with redis.Redis.from_url(broker) as direct:
        for _ in range(patience_s):
            if not direct.llen("celery"):
                break
            time.sleep(1)
    time.sleep(5)
    lines = published.read_text().split() if published.exists() else []
    times = Counter(lines)
    doubled = sum(n > 1 for n in times.values())
    lost = count - len(times)
    return f"plain Celery beside: {count} tasks, {lost} lost or stuck, {doubled} published twice"
