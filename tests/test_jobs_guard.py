"""A URL from outside leads to the public internet, to what the operator allows, or nowhere."""

from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address, ip_network

import pytest

from jobs.addresses import check_addresses
from jobs.errors import UrlRefused, UrlUnreachable
from jobs.guard import MOST_REDIRECTS, check_url, client
from jobs.settings import Settings
from tests.fixtures.peer import HTTP, HTTPS, TRUST, Peer, answer, get, redirects, resolve, says, tls

PUBLIC = Settings(fetch_http=True)


@pytest.fixture
def ours() -> Iterator[Peer]:
    """A server that nobody may reach from outside."""
    with Peer(says(answer(b"secret")), "127.0.0.1") as peer:
        yield peer
        assert not peer.met


def test_a_picture_is_fetched_by_the_name_of_its_host() -> None:
    with Peer(says(answer(b"picture", "Content-Type: image/png")), tls=tls()) as peer:
        url = f"https://pictures.example:{peer.port}/a/b?c=d"
        assert get(url, HTTPS) == (b"picture", "image/png")
        assert peer.names == ["pictures.example"]
        assert peer.requests[0].startswith(b"GET /a/b?c=d HTTP/1.1\r\n")
        assert f"\r\nhost: pictures.example:{peer.port}\r\n".encode() in peer.requests[0].lower()
        assert b"\r\naccept-encoding: identity\r\n" in peer.requests[0].lower()


def test_a_certificate_must_be_of_the_name_and_of_a_known_authority() -> None:
    with Peer(says(answer()), tls=tls()) as peer:
        with pytest.raises(UrlUnreachable, match=r"certificate.*other\.example"):
            get(f"https://other.example:{peer.port}/", HTTPS)
        with pytest.raises(UrlUnreachable, match="certificate"):
            get(f"https://pictures.example:{peer.port}/", HTTPS, verify=None)
        assert not peer.requests


def test_a_webhook_is_delivered() -> None:
    with Peer(says(answer(b"thanks"))) as peer, client(HTTP, 10, verify=TRUST) as http:
        with http.stream("POST", f"http://127.0.0.2:{peer.port}/", json={"id": "x"}) as response:
            assert response.status_code == 200
        assert peer.requests[0].endswith(b'{"id":"x"}')


ADDRESSES = [
    *("127.0.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "198.18.0.1"),
    "192.88.99.1",
    *("224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fd00::1", "fe80::1", "fec0::1"),
    *("ff02::1", "ff0e::1", "2001:db8::1", "3fff::1", "::127.0.0.1", "::ffff:127.0.0.1"),
    *("2002:7f00:1::", "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::7f00:1"),
    *("2001:0:808:808:0:0:80ff:fffe", "2001:0:7f00:1:0:0:f7f7:f7f7"),  # Teredo
    # Where clouds keep their keys.
    *("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
]
FORMS = [
    *("2130706433", "0x7f000001", "0177.0.0.1", "0177.1", "127.1", "0x7f.1", "0", "127。0。0。1"),
    *("[0:0::1]", "[::1%25lo]", "[::1%lo]", "[::FFFF:7f00:1]", "[::ffff:127.0.0.1%25lo]"),
    *(f"[{address}]" if ":" in address else address for address in ADDRESSES),
]


@pytest.mark.parametrize("host", FORMS)
def test_an_address_that_is_not_public_is_refused_in_every_form(host: str, ours: Peer) -> None:
    url = f"http://{host}:{ours.port}/"
    with pytest.raises(UrlRefused):
        check_url(url, PUBLIC)
    with pytest.raises(UrlRefused):
        get(url, PUBLIC)


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_name_that_leads_to_one_is_refused(address: str, ours: Peer) -> None:
    with pytest.raises(UrlRefused, match="not on the public internet") as refused:
        get(f"http://pictures.example:{ours.port}/", PUBLIC, resolve=lambda _: [address])
    assert address not in str(refused.value)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "inside.example", "inside.example."])
def test_a_name_of_this_machine_is_refused(host: str, ours: Peer) -> None:
    with pytest.raises(UrlRefused, match="not on the public internet"):
        get(f"http://{host}:{ours.port}/")


def test_what_is_public_is_not_refused() -> None:
    for host in ("8.8.8.8", "[2606:4700::1111]", "[2002:808:808::]", "[64:ff9b::808:808]", "a.b"):
        assert check_url(f"https://{host}/x", Settings()).path == "/x"
    check_addresses([ip_address("::ffff:8.8.8.8"), ip_address("1.1.1.1")], ())


def test_an_allowed_network_is_allowed_by_every_way_to_it() -> None:
    for host in ("127.0.0.2", "2130706434", "[::ffff:127.0.0.2]", "[64:ff9b::7f00:2]"):
        check_url(f"https://{host}/", HTTPS)
    check_url("https://[fd00::1]/", Settings(fetch_private=(ip_network("fd00::/8"),)))


@pytest.mark.parametrize("host", ["first.example", "last.example"])
def test_a_name_with_one_bad_address_among_others_is_refused(host: str, ours: Peer) -> None:
    with Peer(says(answer()), port=ours.port) as peer:
        with pytest.raises(UrlRefused):
            get(f"http://{host}:{peer.port}/")
        assert not peer.met


def test_of_several_addresses_one_that_answers_is_enough() -> None:
    both = Settings(fetch_http=True, fetch_private=(ip_network("127.0.0.2/31"),))
    with Peer(says(answer())) as peer:
        url = f"http://pictures.example:{peer.port}/"
        assert get(url, both, resolve=lambda _: ["127.0.0.3", "127.0.0.2"])[0] == b"picture"


def rebinding() -> tuple[Callable[[str], list[str]], list[str]]:
    """A resolver that is honest once, and what it was asked."""
    answers, asked = iter([["127.0.0.2"], ["127.0.0.1"]]), list[str]()

    def resolver(host: str) -> list[str]:
        asked.append(host)
        return next(answers)

    return resolver, asked


def test_a_connection_goes_to_the_address_that_was_checked(ours: Peer) -> None:
    resolver, asked = rebinding()
    with Peer(says(answer()), port=ours.port) as peer:
        url = f"http://rebinding.example:{peer.port}/"
        with client(HTTP, 10, verify=TRUST, resolve=resolver) as http:
            with http.stream("GET", url) as response:
                stream = response.extensions["network_stream"]
                assert stream.get_extra_info("server_addr") == ("127.0.0.2", peer.port)
            assert asked == ["rebinding.example"]
            with pytest.raises(UrlRefused):
                http.get(url)
        assert len(asked) == 2 and peer.met == 1


def test_a_name_is_checked_anew_when_it_redirects_to_itself(ours: Peer) -> None:
    resolver, asked = rebinding()
    with Peer(redirects("/again"), port=ours.port) as peer:
        with pytest.raises(UrlRefused):
            get(f"http://rebinding.example:{peer.port}/", resolve=resolver)
        assert len(asked) == 2 and peer.met == 1


@pytest.mark.parametrize(
    "target",
    [
        *("http://127.0.0.1:{port}/", "//127.1:{port}/", "http://localhost:{port}/"),
        *("http://inside.example:{port}/", "http://[::ffff:127.0.0.1]:{port}/"),
        *("http://user:password@127.0.0.2:{port}/", "file:///etc/passwd", "gopher://127.0.0.2/"),
        *("http://xn--a.com/", "https://[::1", "http://a:b:c/", "http://\x7f/"),
    ],
)
def test_a_redirect_is_held_to_the_same_rules(target: str, ours: Peer) -> None:
    with Peer(redirects(target.format(port=ours.port))) as peer:
        url = f"http://pictures.example:{peer.port}/"
        with pytest.raises(UrlRefused):
            get(url)
        with client(HTTP, 10, verify=TRUST, resolve=resolve) as http, pytest.raises(UrlRefused):
            http.get(url, follow_redirects=True)


def test_a_redirect_from_https_to_http_needs_the_setting() -> None:
    with Peer(says(answer())) as plain:
        target = f"http://pictures.example:{plain.port}/"
        with Peer(redirects(target), tls=tls()) as peer:
            with pytest.raises(UrlRefused, match="redirects"):
                get(f"https://pictures.example:{peer.port}/", HTTPS)
            assert peer.requests and not plain.met
            assert get(f"https://pictures.example:{peer.port}/", HTTP)[0] == b"picture"


def test_redirects_are_followed_up_to_a_number() -> None:
    def say(path: str) -> Iterable[bytes]:
        left = int(path[1:])
        return redirects(f"/{left - 1}")(path) if left else [answer()]

    with Peer(say) as peer:
        assert get(f"http://127.0.0.2:{peer.port}/{MOST_REDIRECTS}")[0] == b"picture"
        with pytest.raises(UrlRefused, match="redirects more than 3 times"):
            get(f"http://127.0.0.2:{peer.port}/{MOST_REDIRECTS + 1}")
        assert peer.met == 2 * (MOST_REDIRECTS + 1)


@pytest.mark.parametrize(
    "url",
    [
        *("http://8.8.8.8/", "file:///etc/passwd", "ftp://8.8.8.8/", "gopher://8.8.8.8/", "data:,"),
        *("unix:///run/x", "//a.b/", "a.b", "", " https://a.b/", "https:a.b", "https:///x"),
        *("https://user:password@a.b/", "https://user@a.b/", "https://:@a.b/", "https://a\\@b/"),
        *("https://a.b:0/", "https://a.b:65536/", "https://a.b:-1/", "https://a.b:x/"),
        *("https://a..b/", "https://.a/", "https://a%2eb/", "https://a b/", "https://xn--a.com/"),
        *(
            "https://a\nb/",
            "https://[::1",
            "https://[::g]/",
            "https://\uff11.1.1.1/",
            "https://a.b/\0",
        ),
        *("https://" + "a" * 64 + ".b/", "https://a.b/" + "x" * 70_000),
    ],
    ids=lambda url: url[:20],
)
def test_what_is_no_good_url_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused) as refused:
        check_url(url, Settings())
    assert "password" not in str(refused.value).replace("no password", "")
    with pytest.raises(UrlRefused):
        get(url, Settings())


@pytest.mark.parametrize("start", ["http://", "https://user:password@"])
def test_the_client_checks_each_url_itself(start: str) -> None:
    with Peer(says(answer())) as peer, client(HTTPS, 10, verify=TRUST) as http:
        with pytest.raises(UrlRefused):
            http.get(f"{start}127.0.0.2:{peer.port}/")
        assert not peer.met


def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Peer(says(answer(b"secret"))) as proxy, Peer(says(answer())) as peer:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.2:{proxy.port}")
            monkeypatch.setenv(name.lower(), f"http://127.0.0.2:{proxy.port}")
        assert get(f"http://pictures.example:{peer.port}/")[0] == b"picture"
        assert not proxy.met
