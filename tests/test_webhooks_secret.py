"""Each tenant verifies his own deliveries, and can sign nobody else's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from standardwebhooks import Webhook, WebhookVerificationError

import api
from jobs.batches import Asker
from jobs.catalog import Catalog
from jobs.queue import make_app
from jobs.settings import Settings
from jobs.store import JobStore
from tests.conftest import Server
from tests.fixtures.jobs import ask
from tests.fixtures.keys import code, keys
from tests.fixtures.peer import ALLOWED, Peer, says
from tests.fixtures.receiver import KEY, SECRET, SIGNED, THANKS
from worker.lease import Drain
from worker.webhooks import Courier

Asks = Callable[..., Any]


@pytest.fixture
def asks(client: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asks:
    """asks(tenant, scope…): what a key of that tenant is answered."""
    file = tmp_path / "keys.jsonl"
    for name, value in {**SIGNED, "FLEET_API_KEYS_FILE": str(file)}.items():
        monkeypatch.setenv(name, value)
    keys(file, "create", "--tenant", "nobody")
    fleet = api.create_app().test_client()

    def asks(tenant: str, *scopes: str) -> Any:
        words = [word for scope in scopes for word in ("--scope", scope)]
        key = keys(file, "create", "--tenant", tenant, *words)
        return fleet.get("/v1/webhooks/secret", headers={"Authorization": f"Bearer {key}"})

    return asks


def raw(peer: Peer) -> tuple[dict[str, str], bytes]:
    """Headers and body of the one request that it heard."""
    (request,) = peer.requests
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")[1:]
    return {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body


def delivered(store: JobStore, valkey: Server, catalog: Catalog, tenant: str) -> Any:
    settings = Settings(
        redis_url=valkey.url,
        key_prefix=store._prefix,
        fetch_http=True,
        fetch_private=ALLOWED,
        webhook_secret=KEY,
    )
    with Peer(says(THANKS)) as peer:
        webhook = {"url": f"http://127.0.0.2:{peer.port}/hook"}
        id, _ = store.submit(ask(catalog, webhook=webhook), asker=Asker(tenant))
        store.cancel(id, tenant)
        assert Courier(make_app(settings), settings, store, Drain(), 1).deliver_all() == 1
        headers, body = raw(peer)
    return id, headers, body


def test_a_tenant_verifies_his_own_and_no_others(
    asks: Asks, store: JobStore, valkey: Server, catalog: Catalog
) -> None:
    secrets = {name: asks(name, "write").json["secret"] for name in ("a", "b")}
    assert len({*secrets.values(), SECRET}) == 3
    for tenant, others in (("a", ["b"]), ("b", ["a"]), ("default", ["a", "b"])):
        id, headers, body = delivered(store, valkey, catalog, tenant)
        own = secrets.get(tenant, SECRET)
        assert Webhook(own).verify(body, headers)["data"]["id"] == id
        for other in (*(secrets[name] for name in others), *({SECRET} - {own})):
            with pytest.raises(WebhookVerificationError):
                Webhook(other).verify(body, headers)


def test_the_secret_is_for_who_may_write(asks: Asks) -> None:
    answer = asks("a", "write")
    assert answer.status_code == 200 and answer.headers["Cache-Control"] == "no-store"
    assert answer.json["object"] == "webhook_secret"
    assert asks("a", "read", "write").json == answer.json, "every key of the tenant has the same"
    assert code(asks("a", "read")) == (403, "forbidden")


def test_that_of_the_default_tenant_is_the_setting_itself_for_admins_alone(asks: Asks) -> None:
    assert asks("default", "admin").json["secret"] == SECRET
    assert code(asks("default", "write")) == (403, "forbidden"), "all others follow from it"


def test_a_fleet_that_signs_nothing_says_so(client: FlaskClient) -> None:
    answer: Any = client.get("/v1/webhooks/secret")
    assert code(answer) == (404, "not_found") and "signs no webhooks" in answer.json["detail"]
