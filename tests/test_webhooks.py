"""What the courier makes of what a receiver answers."""

import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from cli import servers
from jobs.catalog import Catalog
from jobs.queue import MOST_UNHEARD, hint_delivery, make_app
from jobs.settings import Settings
from jobs.store import JobStore
from tests.conftest import Server, until
from tests.fixtures.peer import ALLOWED, Peer, Say, answer, redirects, says
from tests.fixtures.receiver import ERROR, KEY, THANKS, canceled, heard, told
from worker.lease import Drain
from worker.webhooks import DELAYS, Courier, delay_s


@pytest.fixture
def settings(valkey: Server, store: JobStore) -> Settings:
    return Settings(
        redis_url=valkey.url,
        key_prefix=store._prefix,
        fetch_http=True,
        fetch_private=ALLOWED,
        webhook_secret=KEY,
    )


@pytest.fixture
def courier(settings: Settings, store: JobStore) -> Courier:
    """A second attempt at once, a third in a minute; it is not started."""
    return Courier(make_app(settings), settings, store, Drain(), 1, delays=(0.0, 60.0))


SCHEDULE = [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]


@pytest.mark.parametrize("attempt,seconds", [*enumerate(SCHEDULE, 1), (10, None), (11, None)])
def test_the_schedule_is_that_of_standard_webhooks(attempt: int, seconds: float | None) -> None:
    if seconds is None:
        assert delay_s(attempt, 0.5) is None
        return
    assert delay_s(attempt, 0.5) == pytest.approx(seconds)
    assert delay_s(attempt, 0) == pytest.approx(0.9 * seconds)
    assert delay_s(attempt, 1) == pytest.approx(1.1 * seconds)
    assert len(DELAYS) == len(SCHEDULE)


def test_gone_ends_the_tries(courier: Courier, store: JobStore, catalog: Catalog) -> None:
    with Peer(says(answer(b"", status="410 Gone"))) as peer:
        id = canceled(store, catalog, peer)
        assert courier.deliver_all() == 1
        (delivery,) = store.outbox.of(id)
    assert (delivery.state, delivery.last_status) == ("failed", 410)


def test_the_last_attempt_that_fails_is_the_end(
    settings: Settings, store: JobStore, catalog: Catalog
) -> None:
    courier = Courier(make_app(settings), settings, store, Drain(), 1, delays=(0.0,) * 9)
    with Peer(says(ERROR)) as peer:
        id = canceled(store, catalog, peer)
        assert courier.deliver_all() == 10
        (delivery,) = store.outbox.of(id)
        assert len({headers["webhook-id"] for headers, _ in heard(peer)}) == 1
    assert (delivery.state, delivery.attempts, delivery.next_at) == ("failed", 10, None)


def silence(_: str) -> Iterable[bytes]:
    time.sleep(2)
    yield THANKS


def dribble(_: str) -> Iterable[bytes]:
    for letter in THANKS:
        time.sleep(0.2)
        yield bytes([letter])


@pytest.mark.parametrize("say", [silence, dribble])
def test_a_receiver_that_is_late_has_not_heard(
    settings: Settings, store: JobStore, catalog: Catalog, say: Say
) -> None:
    app, short = make_app(settings), {"timeout_s": 0.5, "delays": (60.0,)}
    courier = Courier(app, settings, store, Drain(), 1, **short)
    with Peer(say) as peer:
        id = canceled(store, catalog, peer)
        began = time.monotonic()
        assert courier.deliver_all() == 1
        assert time.monotonic() - began < 5
        (delivery,) = store.outbox.of(id)
    assert delivery.state == "pending" and delivery.last_status is None
    assert delivery.last_error == "The URL did not answer in time."


def test_a_redirect_is_not_followed(courier: Courier, store: JobStore, catalog: Catalog) -> None:
    with Peer(says(THANKS)) as other, Peer(redirects(f"http://127.0.0.2:{other.port}/")) as peer:
        id = canceled(store, catalog, peer)
        courier.deliver_all()
        (delivery,) = store.outbox.of(id)
    assert other.met == 0 and len(peer.requests) == 2
    assert (delivery.state, delivery.last_status) == ("pending", 302)


def test_a_name_that_leads_inside_by_now_is_refused(
    courier: Courier, store: JobStore, catalog: Catalog
) -> None:
    with Peer(says(THANKS), address="127.0.0.1") as peer:
        id = canceled(store, catalog, peer, "localhost")
        courier.deliver_all()
        (delivery,) = store.outbox.of(id)
    assert peer.met == 0 and delivery.state == "pending" and delivery.last_status is None
    assert delivery.last_error == "The URL's host is not on the public internet."


def test_without_a_secret_it_waits(settings: Settings, store: JobStore, catalog: Catalog) -> None:
    unsigned = replace(settings, webhook_secret=None)
    courier = Courier(make_app(unsigned), unsigned, store, Drain(), 1)
    with Peer(says(THANKS)) as peer:
        id = canceled(store, catalog, peer)
        assert courier.deliver_all() == 0 and peer.met == 0
        (delivery,) = store.outbox.of(id)
    assert (delivery.state, delivery.attempts) == ("pending", 0)


def test_a_redis_that_dies_in_mid_delivery_hears_of_it_later(
    settings: Settings, catalog: Catalog, tmp_path: Path
) -> None:
    server = Server(servers.valkey(tmp_path / "valkey"), tmp_path / "log")
    own = replace(settings, redis_url=server.url)
    store = JobStore(own.redis_url, own.key_prefix)

    def say(_: str) -> Iterable[bytes]:
        server.kill()
        yield THANKS

    with ExitStack() as stack:
        stack.callback(server.kill)
        peer = stack.enter_context(Peer(say))
        id = canceled(store, catalog, peer)
        courier = Courier(make_app(own), own, store, Drain(), 1)
        thread = threading.Thread(target=courier.deliver_all)
        thread.start()
        until(lambda: peer.requests and server.process.poll() is not None)
        time.sleep(1.5)
        server.start()
        assert told(store, id).attempts == 1
        thread.join(10)
        assert len(peer.requests) == 1


def test_hints_of_deliveries_do_not_pile_up(
    settings: Settings, store: JobStore, catalog: Catalog
) -> None:
    """Where no worker of webhooks runs, nobody takes them."""
    app, waiting = make_app(settings), f"{settings.key_prefix}:celery:webhooks"
    with Peer(says(THANKS)) as peer:
        canceled(store, catalog, peer)
    for _ in range(MOST_UNHEARD + 20):
        hint_delivery(app, store)
    assert store._redis.llen(waiting) == MOST_UNHEARD
