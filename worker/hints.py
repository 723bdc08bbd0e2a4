"""Hints and a broker that comes and goes."""

from typing import Any

from kombu.transport import redis

from jobs.connection import told_as_lost


class HintQoS(redis.QoS):  # type: ignore[misc]
    """What a lost connection has not acknowledged stays with the broker: a hint is expendable.

    kombu (5.6) would put it back while it closes that connection, on a channel that is closed
    already: an AttributeError, by which a Redis that restarts ends every worker that is at a job.
    """

    restore_at_shutdown = False
    append = told_as_lost(redis.QoS.append)
    reject = told_as_lost(redis.QoS.reject)
    restore_visible = told_as_lost(redis.QoS.restore_visible)

    @told_as_lost
    def ack(self, delivery_tag: Any) -> None:
        if not self.channel.closed:
            super().ack(delivery_tag)


def survive_broker() -> None:
    redis.Channel.QoS = HintQoS
