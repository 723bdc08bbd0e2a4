"""The web process: `gunicorn "api:create_app()"`. It writes new jobs and wishes, reads the rest."""

import sys

from flask import Flask

from api import (
    auth,
    batches,
    deliveries,
    errors,
    events,
    health,
    ids,
    jobs,
    logs,
    metrics,
    models,
    openai_images,
    openai_videos,
    openapi,
    pages,
    queue,
    uploads,
    webhooks,
    workers,
)
from api.follower import Follower
from api.keys import Keys
from api.places import Places
from api.public import PublicUrl
from api.services import Services
from api.sockets import give_up_on_the_stalled
from jobs.artifacts import ArtifactStorage
from jobs.catalog import load_catalog
from jobs.errors import SettingsError
from jobs.queue import make_app
from jobs.settings import load_settings
from jobs.store import JobStore

MOST_FETCHES = 32  # of one process: slow servers must not hold all its threads
GUNICORN_GIVES_UP = 3  # any other code, and it starts the next worker, for ever


def create_app() -> Flask:
    """Settings come from the environment; a bad one ends the process with a sentence."""
    try:
        settings = load_settings()
        limits = (settings.max_queued, settings.max_queued_per_tenant)
        store = JobStore(settings.redis_url, settings.key_prefix, settings.lease_s, *limits)
        keys = Keys(settings.api_keys_file) if settings.api_keys_file else None
        most = settings.max_streams
        shares = 2 if keys else 1  # without keys all are one tenant
        places = Places(most, max(1, most // shares))
        services = Services(
            settings,
            load_catalog(settings.models),
            store,
            ArtifactStorage(settings),
            make_app(settings),
            Follower(store.events, places),
            keys,
            places,
            Places(MOST_FETCHES, MOST_FETCHES // shares),
        )
        app = Flask(__name__)
        app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
        app.config["MAX_FORM_MEMORY_SIZE"] = settings.max_body_bytes  # else 500 kB for a text part
        app.extensions["fleet"] = services
        metrics.register(app)
        errors.register(app)
        auth.register(app)
        give_up_on_the_stalled()
        ids.register(app)
        if settings.public_url:
            app.wsgi_app = PublicUrl(app, settings.public_url)  # type: ignore[method-assign]
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(GUNICORN_GIVES_UP) from None
    parts = (jobs, logs, deliveries, events, batches, models, queue, uploads, workers, health)
    for part in (*parts, webhooks, metrics, openai_images, openai_videos, openapi, pages):
        app.register_blueprint(part.blueprint)
    return app
