"""The Celery app's consuming half: `celery -A worker worker`, with `-Q webhooks` where there is no
GPU, and `celery -A worker flower`."""

from celery.worker import components

from jobs.queue import make_app
from jobs.settings import settings_or_exit
from worker.bootstep import GroupStep, WebhooksStep
from worker.hints import survive_broker

settings = settings_or_exit()
app = make_app(settings)
app.settings = settings
app.conf.update(
    imports=["worker.tasks"],
    # Threads: solo is deaf while a job runs, and a fork gives nothing to a process without torch.
    worker_pool="threads",
    worker_concurrency=1,  # worker/bootstep.py sets it, by the number of ranks
    worker_prefetch_multiplier=1,
    worker_direct=True,  # a queue of its own, besides: see worker/reaper.py
    task_acks_late=True,
    worker_disable_prefetch=False,  # with threads it can stall a worker for ever
    worker_cancel_long_running_tasks_on_connection_loss=False,  # the lease decides, not the broker
)
survive_broker()
app.steps["worker"].update((GroupStep, WebhooksStep))
components.Pool.requires = (*components.Pool.requires, GroupStep, WebhooksStep)
