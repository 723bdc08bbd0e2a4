"""What the task needs of its worker; the bootstep sets it as app.fleet."""

from dataclasses import dataclass

from jobs.artifacts import ArtifactStorage
from jobs.catalog import Catalog, ModelSpec
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.weights import encoder_bytes, weights_bytes
from worker.group import Group
from worker.lanes import Lanes
from worker.lease import Drain
from worker.planner import Room


@dataclass
class Fleet:
    settings: Settings
    catalog: Catalog
    store: JobStore
    storage: ArtifactStorage
    group: Group
    drain: Drain
    lanes: Lanes

    def room(self, spec: ModelSpec) -> Room:
        """For a model's weights, on the ranks of this worker."""
        source = spec.source(self.settings.models_dir)
        bytes_of = weights_bytes(source, spec.dtype), encoder_bytes(source, spec.dtype)
        return Room(*bytes_of, self.group.least_memory())
