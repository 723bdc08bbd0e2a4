"""A picture may be a URL: the record has it as a data URL, or no job is made."""

import json
import ssl
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import trustme
from flask.testing import FlaskClient

import api
from api import inputs
from jobs import guard
from jobs.store import JobStore
from tests.fixtures.asking import job, kept, post, refused
from tests.fixtures.keys import keys
from tests.fixtures.peer import Peer, Say, answer, redirects, says
from tests.fixtures.pictures import data_url, file, painted

PICTURE = file()


@pytest.fixture(autouse=True)
def peers_may_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_FETCH_PRIVATE", "127.0.0.2/32")
    monkeypatch.setenv("FLEET_FETCH_HTTP", "1")


@pytest.fixture
def ours() -> Iterator[Peer]:
    """A server that nobody may reach from outside."""
    with Peer(says(answer(b"secret")), "127.0.0.1") as peer:
        yield peer
        assert not peer.met


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_url_is_fetched_whatever_it_says_of_its_type(
    client: FlaskClient, store: JobStore, kind: str
) -> None:
    data = file(kind)
    with Peer(says(answer(data, "Content-Type: text/html"))) as peer:
        made = post(client, f"http://127.0.0.2:{peer.port}/a.gif")
    assert kept(store, made) == data
    shown = made.json["input"]["image"]
    assert shown.startswith(f"data:image/{kind.lower()};base64,") and len(shown) < 100


def test_https_and_its_certificate(
    client: FlaskClient, store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.2").configure_cert(context)
    with Peer(says(answer(PICTURE)), tls=context) as peer:
        url = f"https://127.0.0.2:{peer.port}/"
        detail = refused(client, post(client, url), 422, "input_fetch_failed", "/input/image")
        assert "certificate" in detail
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        guard._trusted.cache_clear()  # a process reads it once
        assert kept(store, post(client, url)) == PICTURE
    guard._trusted.cache_clear()


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://2130706433:{port}/",
        "file:///etc/passwd",
        "ftp://example.com/a.png",
        "https://user:password@example.com/",
        "https://",
    ],
)
def test_a_url_that_leads_inside_is_refused(client: FlaskClient, ours: Peer, url: str) -> None:
    made = post(client, url.format(port=ours.port))
    refused(client, made, 422, "input_fetch_refused", "/input/image")
    assert made.json["retryable"] is False and "Retry-After" not in made.headers


@pytest.mark.parametrize("to", ["http://127.0.0.1:{port}/", "http://169.254.169.254/", "file:///"])
def test_a_redirect_inside_is_refused(client: FlaskClient, ours: Peer, to: str) -> None:
    with Peer(redirects(to.format(port=ours.port))) as peer:
        made = post(client, f"http://127.0.0.2:{peer.port}/")
    refused(client, made, 422, "input_fetch_refused", "/input/image")


def test_plain_http_is_for_those_who_allow_it(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    object.__setattr__(client.application.extensions["fleet"].settings, "fetch_http", False)
    with Peer(says(answer(PICTURE))) as peer:
        made = post(client, f"http://127.0.0.2:{peer.port}/")
        refused(client, made, 422, "input_fetch_refused", "/input/image")
        assert not peer.met


def endless(_: str) -> Iterable[bytes]:
    """More than may be, of no declared length."""
    yield b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    for _ in range(330):
        yield b"x" * 65536


def slow(_: str) -> Iterable[bytes]:
    yield answer(PICTURE, "Content-Length: 60")[:80]
    for _ in range(50):
        time.sleep(0.2)
        yield b"x"


@pytest.mark.parametrize(
    "say,detail",
    [
        (says(answer(status="404 Not Found")), "status 404"),
        (says(answer(b"<html>no</html>", "Content-Type: image/png")), "no PNG, JPEG or WebP"),
        (says(answer(b"GIF89a" + bytes(50), "Content-Type: image/png")), "no PNG, JPEG or WebP"),
        (says(answer(b"")), "no PNG, JPEG or WebP"),
        (says(answer(b"x", "Content-Length: 20000001")), "more than 20000000 bytes"),
        (endless, "more than 20000000 bytes"),
        (slow, "in time"),
    ],
    ids=["404", "html", "gif", "empty", "declared", "endless", "slow"],
)
def test_a_url_without_a_picture(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, say: Say, detail: str
) -> None:
    if say is slow:
        monkeypatch.setattr(inputs, "FETCH_S", 1)
    began = time.monotonic()
    with Peer(say) as peer:
        made = post(client, f"http://127.0.0.2:{peer.port}/picture.png")
    assert detail in refused(client, made, 422, "input_fetch_failed", "/input/image")
    assert made.json["retryable"] is False and time.monotonic() - began < 15


def bomb() -> bytes:
    """5,000 x 5,000 pixels, says its head."""
    head = b"IHDR" + (5000).to_bytes(4) * 2 + b"\x08\x02\x00\x00\x00"
    return PICTURE[:12] + head + zlib.crc32(head).to_bytes(4) + PICTURE[33:]


@pytest.mark.parametrize(
    "data,says_", [(bomb(), "more than 16777216 pixels"), (PICTURE[:-500], "can't be read")]
)
def test_a_fetched_picture_is_looked_into(client: FlaskClient, data: bytes, says_: str) -> None:
    with Peer(says(answer(data))) as peer:
        made = post(client, f"http://127.0.0.2:{peer.port}/")
    assert says_ in refused(client, made, 422, "invalid_request", "/input/image")


def test_the_pictures_of_a_request_share_one_deadline(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "FETCH_S", 1.0)

    def late(_: str) -> Iterable[bytes]:
        time.sleep(0.7)
        yield answer(PICTURE)

    with Peer(late) as peer:
        url = f"http://127.0.0.2:{peer.port}/"
        began = time.monotonic()
        made = post(client, f"{url}a", mask=f"{url}b")
        assert time.monotonic() - began > 0.9
    refused(client, made, 422, "input_fetch_failed", "/input/mask")


def test_image_and_mask(client: FlaskClient, store: JobStore) -> None:
    mask = file(mask=True)
    with Peer(lambda path: [answer(mask if path == "/mask" else PICTURE)]) as peer:
        url = f"http://127.0.0.2:{peer.port}"
        made = post(client, f"{url}/image", mask=f"{url}/mask")
    assert kept(store, made) == PICTURE and kept(store, made, "mask") == mask


def test_nothing_is_fetched_for_what_is_refused_anyway(client: FlaskClient) -> None:
    with Peer(says(answer(PICTURE))) as peer:
        url = f"http://127.0.0.2:{peer.port}/"
        refused(client, post(client, url, width=3), 422, "invalid_request", "/input/width")
        body = {"model": "tiny-image", "input": {"prompt": "x", "image": url}}
        made = client.post("/v1/jobs", json=body)
        refused(client, made, 422, "invalid_request", "/input/image")
        jobs = {"jobs": [job(url), {"model": "nothing"}]}
        made = client.post("/v1/batches", json=jobs)
        refused(client, made, 404, "model_not_found", "/jobs/1/model")
        assert not peer.met


def test_a_request_that_comes_again_fetches_nothing_again(client: FlaskClient) -> None:
    key = {"Idempotency-Key": "k"}
    with Peer(says(answer(PICTURE))) as peer:
        url = f"http://127.0.0.2:{peer.port}/"
        first, again = post(client, url, key), post(client, url, key)
        assert first.json["id"] == again.json["id"] and peer.met == 1
        assert again.headers["Idempotent-Replayed"] == "true"
        other = post(client, url + "other", key)
        assert other.status_code == 422 and other.json["code"] == "idempotency_key_reused"
        batches = [
            client.post("/v1/batches", json={"jobs": [job(url)]}, headers=key) for _ in range(2)
        ]
        assert batches[0].json["id"] == batches[1].json["id"] and peer.met == 2
        other = client.post("/v1/batches", json={"jobs": [job(url + "x")]}, headers=key)
        assert other.json["code"] == "idempotency_key_reused" and peer.met == 2
        client.delete(f"/v1/jobs/{first.json['id']}")
        assert post(client, url, key).json["id"] != first.json["id"], "its job is gone"


def test_a_batch_fetches_each_url_once(client: FlaskClient, store: JobStore) -> None:
    with Peer(lambda path: [answer(file(mask=path == "/b"))]) as peer:
        a, b = (f"http://127.0.0.2:{peer.port}/{name}" for name in "ab")
        body = {"job": job(a), "matrix": {"input.seed": [1, 2, 3], "input.image": [a, b]}}
        batch = client.post("/v1/batches", data=json.dumps(body), content_type="application/json")
        assert batch.status_code == 202 and peer.met == 2
    urls = [store.request(store.get(id))["input"]["image"] for id in batch.json["jobs"]]
    assert urls == [data_url(painted(False)), data_url(painted(True))] * 3


def test_a_batch_names_every_picture_that_is_none(client: FlaskClient) -> None:
    with Peer(says(answer(b"no"))) as peer:
        url = f"http://127.0.0.2:{peer.port}/"
        bad = {"jobs": [job(url), job(data_url(painted(False))), job(url)]}
        made = client.post("/v1/batches", json=bad)
        refused(client, made, 422, "input_fetch_failed", "/jobs/0/input/image")
        assert [p["pointer"][:7] for p in made.json["errors"]] == ["/jobs/0", "/jobs/2"]
        assert peer.met == 1
        made = client.post("/v1/batches", json={"job": job(url), "matrix": {"input.seed": [1]}})
        refused(client, made, 422, "input_fetch_failed", "/job/input/image")
        made = client.post("/v1/batches", json={"jobs": [job(url), job("file:///x")]})
        refused(client, made, 422, "invalid_request", "/jobs/0/input/image")
        codes = [p["code"] for p in made.json["errors"]]
        assert codes == ["input_fetch_failed", "input_fetch_refused"]


def test_a_batch_of_too_many_bytes(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    url = data_url(painted(False))
    monkeypatch.setattr(inputs, "MOST_CHARS", 10 * len(url))
    body = {"job": job(url), "matrix": {"input.seed": list(range(11))}}
    made = client.post("/v1/batches", json=body)
    assert made.status_code == 413 and made.json["code"] == "payload_too_large"
    body["matrix"]["input.seed"].pop()
    assert client.post("/v1/batches", json=body).status_code == 202


def test_fetches_are_bounded(client: FlaskClient) -> None:
    with Peer(says(answer(PICTURE))) as peer:
        url = f"http://127.0.0.2:{peer.port}/"
        for path in "abc":
            assert post(client, url + path).status_code == 202, "one after the other"
        fetches = client.application.extensions["fleet"].fetches
        for _ in range(api.MOST_FETCHES):
            fetches.take("default")
        made = post(client, url + "d")
        body = {"jobs": [job(url + "e")]}
        for refused in (made, client.post("/v1/batches", json=body)):
            assert refused.status_code == 429 and refused.headers["Retry-After"] and peer.met == 3
            assert refused.json["code"] == "rate_limited"  # type: ignore[index]
            assert refused.headers["RateLimit-Limit"] == str(api.MOST_FETCHES)
            assert refused.headers["RateLimit-Remaining"] == "0"


def test_with_keys_a_tenant_has_half_of_the_fetches(
    client: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_API_KEYS_FILE", str(tmp_path / "keys"))
    callers = [keys(tmp_path / "keys", "create", "--tenant", name) for name in "ab"]
    asked = api.create_app().test_client()
    for _ in range(api.MOST_FETCHES // 2):
        asked.application.extensions["fleet"].fetches.take("a")
    with Peer(says(answer(PICTURE))) as peer:
        body = job(f"http://127.0.0.2:{peer.port}/")
        for key, status in zip(callers, (429, 202), strict=True):
            headers = {"Authorization": f"Bearer {key}"}
            assert asked.post("/v1/jobs", json=body, headers=headers).status_code == status


def test_a_video_that_is_asked_for_again_is_not_fetched_for_again(client: FlaskClient) -> None:
    with Peer(says(answer(PICTURE))) as peer:
        picture = {"image_url": f"http://127.0.0.2:{peer.port}/"}
        body = {"prompt": "x", "input_reference": picture}
        ids = [
            client.post("/v1/videos", json=body, headers={"X-Stainless-Retry-Count": count}).json
            for count in ("0", "1", "0")
        ]
        assert ids[0] == ids[1] != ids[2] and peer.met == 2
