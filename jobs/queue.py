"""The Celery app's sending half: broker, queues, and the hint ("there is work, X for one")."""

import contextlib
import logging
from urllib.parse import quote

from celery import Celery
from celery.utils.nodenames import worker_direct
from kombu import Queue

from jobs.errors import StoreUnavailable
from jobs.settings import Settings
from jobs.store import JobStore, new_id

logger = logging.getLogger(__name__)

GPU_QUEUE = "gpu"
RUN = "fleet.run"
WEBHOOKS_QUEUE = "webhooks"  # no default one: a worker takes it by -Q webhooks alone
DELIVER = "fleet.deliver"
MOST_UNHEARD = 100  # hints of deliveries: a worker that hears one delivers all that is due


def make_app(settings: Settings) -> Celery:
    """The same broker and queues in the API, the workers and Flower.

    They must agree on visibility_timeout: a client with a smaller one re-queues running work.
    """
    app = Celery("fleet", broker=settings.redis_url)
    app.conf.update(
        task_queues=[Queue(GPU_QUEUE)],
        task_default_queue=GPU_QUEUE,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": 43200,
            "health_check_interval": 10,
            "socket_timeout": 10,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "sep": "|",
            "global_keyprefix": f"{quote(settings.key_prefix)}:celery:",
        },
        worker_send_task_events=True,
        task_send_sent_event=True,
    )
    return app


def hint(app: Celery, id: str, first: bool = False, worker: str = "") -> bool:
    """Tells a worker that there is work: this one, by the queue that is its own, or any.
    Expendable: the reaper sends it again.

    id: the job that it is for, if for any; the task takes its id where it is the first one, so that
    Flower shows it. False: the broker is away.
    """
    name, queue = id if first else new_id("hint"), worker_direct(worker) if worker else GPU_QUEUE
    try:
        app.send_task(RUN, args=[GPU_QUEUE], task_id=name, queue=queue, retry=False)
    except Exception as error:  # kombu lets several kinds through; none may end what is recorded
        logger.warning("no hint for %s: %s", id, error)
        return False
    return True


def hint_delivery(app: Celery, store: JobStore) -> None:
    """Tells a worker of webhooks that something is due, if so. Expendable: it looks by itself, and
    where there is none its hints do not pile up."""
    try:
        if store.outbox.due() and _unheard(app, WEBHOOKS_QUEUE) < MOST_UNHEARD:
            app.send_task(DELIVER, queue=WEBHOOKS_QUEUE, task_id=new_id("hint"), retry=False)
    except Exception as error:  # as in hint()
        logger.warning("no hint that webhooks are due: %s", error)


def _unheard(app: Celery, queue: str) -> int:
    """Messages that wait there."""
    with app.producer_or_acquire() as producer:
        return int(producer.channel.queue_declare(queue).message_count)


def send_hint(app: Celery, store: JobStore, id: str, first: bool = False) -> None:
    """A hint now, so that the reaper need not send one at its next tick."""
    if hint(app, id, first):
        with contextlib.suppress(StoreUnavailable):  # then there is one more, a no-op
            store.hinted(id)
