"""What POST /v1/jobs is compared with: a view that publishes a Celery message and does no more.

`gunicorn "benchmarks.bare_view:create_app()"`; settings, broker and queue are the fleet's.
"""

from typing import Any

from flask import Flask, current_app, request

from jobs.queue import GPU_QUEUE, make_app
from jobs.settings import load_settings
from jobs.store import new_id


def create_app() -> Flask:
    app = Flask(__name__)
    app.extensions["celery"] = make_app(load_settings())
    app.add_url_rule("/v1/jobs", view_func=publish, methods=["POST"])
    app.add_url_rule("/readyz", view_func=dict)
    return app


def publish() -> tuple[dict[str, Any], int]:
    id = new_id()
    args = [GPU_QUEUE, request.get_json()]
    current_app.extensions["celery"].send_task("plain.run", args=args, task_id=id, retry=False)
    return {"id": id}, 202
