"""What the driver says of this worker's GPUs, for the operator; nothing here depends on it.

https://docs.nvidia.com/deploy/nvml-api
"""

import threading
import time
from collections.abc import Sequence

Reading = dict[str, int | None]
NOTHING: Reading = {
    "utilization_percent": None,
    "temperature_c": None,
    "memory_used_bytes": None,
}
KEPT_S = 30  # a reading is no news any more after that


class Gpus:
    """Reads apart from its callers: a driver whose GPU is broken may not answer at all."""

    def __init__(self) -> None:
        self._latest: dict[str, Reading] = {}
        self._read_at = 0.0
        self._reader: threading.Thread | None = None

    def latest(self, uuids: Sequence[str]) -> dict[str, Reading]:
        """By uuid, as the driver answered the call before this one; nothing, if it did not."""
        if uuids and not (self._reader and self._reader.is_alive()):
            self._reader = threading.Thread(
                target=self._read, args=(uuids,), name="gpus", daemon=True
            )
            self._reader.start()
        return self._latest if time.monotonic() < self._read_at + KEPT_S else {}

    def _read(self, uuids: Sequence[str]) -> None:
        import pynvml  # late: webhooks and Flower do without

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:  # no such driver
            return
        try:
            self._latest = {uuid: _reading(uuid) for uuid in uuids}
            self._read_at = time.monotonic()
        finally:
            pynvml.nvmlShutdown()


def _reading(uuid: str) -> Reading:
    import pynvml

    try:
        gpu = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return {
            "utilization_percent": pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
            "temperature_c": pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU),
            "memory_used_bytes": pynvml.nvmlDeviceGetMemoryInfo(gpu).used,
        }
    except pynvml.NVMLError:  # it is lost, or does not tell
        return NOTHING
