"""What the task needs of its worker; the bootstep sets it as app.fleet."""

from dataclasses import dataclass

from jobs.artifacts import ArtifactStorage
from jobs.catalog import Catalog
from jobs.settings import Settings
from jobs.store import JobStore
from worker.group import Group
from worker.lanes import Lanes
from worker.lease import Drain


@dataclass
class Fleet:
    settings: Settings
    catalog: Catalog
    store: JobStore
    storage: ArtifactStorage
    group: Group
    drain: Drain
    lanes: Lanes
