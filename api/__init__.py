"""The web process: `gunicorn "api:create_app()"`. It writes new jobs and wishes, reads the rest."""

import sys

from flask import Flask

from api import batches, errors, events, health, jobs, models, workers
from api.follower import Follower
from api.services import Services
from jobs.artifacts import ArtifactStorage
from jobs.catalog import load_catalog
from jobs.errors import SettingsError
from jobs.queue import make_app
from jobs.settings import load_settings
from jobs.store import JobStore

GUNICORN_GIVES_UP = 3  # any other code, and it starts the next worker, for ever


def create_app() -> Flask:
    """Settings come from the environment; a bad one ends the process with a sentence."""
    try:
        settings = load_settings()
        limits = (settings.max_queued, settings.max_queued_per_tenant)
        store = JobStore(settings.redis_url, settings.key_prefix, settings.lease_s, *limits)
        services = Services(
            settings,
            load_catalog(settings.models),
            store,
            ArtifactStorage(settings),
            make_app(settings),
            Follower(store.events, settings.max_streams),
        )
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(GUNICORN_GIVES_UP) from None
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.extensions["fleet"] = services
    errors.register(app)
    for part in (jobs, events, batches, models, workers, health):
        app.register_blueprint(part.blueprint)
    return app
