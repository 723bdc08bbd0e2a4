"""What every view works with."""

from dataclasses import dataclass
from typing import cast

from celery import Celery
from flask import current_app

from api.follower import Follower
from api.keys import Keys
from api.places import Places
from jobs.artifacts import ArtifactStorage
from jobs.catalog import Catalog
from jobs.settings import Settings
from jobs.store import JobStore


@dataclass(frozen=True)
class Services:
    settings: Settings
    catalog: Catalog
    store: JobStore
    storage: ArtifactStorage
    celery: Celery
    follower: Follower
    keys: Keys | None  # None: whoever asks may
    places: Places  # of streams, and of requests that wait
    fetches: Places  # of pictures from other servers, which may be slow


def services() -> Services:
    return cast(Services, current_app.extensions["fleet"])
