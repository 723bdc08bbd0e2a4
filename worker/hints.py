"""Hints and a broker that comes and goes."""

from typing import Any

from kombu.transport import redis


class HintQoS(redis.QoS):  # type: ignore[misc]
    """What a lost connection has not acknowledged stays with the broker: a hint is expendable.

    kombu (5.6) would put it back while it closes that connection, on a channel that is closed
    already: an AttributeError, by which a Redis that restarts ends every worker that is at a job.
    """

    restore_at_shutdown = False

    def ack(self, delivery_tag: Any) -> None:
        if not self.channel.closed:
            super().ack(delivery_tag)


def survive_broker() -> None:
    redis.Channel.QoS = HintQoS
