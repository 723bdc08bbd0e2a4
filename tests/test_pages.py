"""/ and /docs: what a person sees, without internet."""

import re
import tomllib
from pathlib import Path

from flask.testing import FlaskClient

ROOT = Path(__file__).parent.parent


def test_the_page_tells_every_operation_with_a_command(client: FlaskClient) -> None:
    document = client.get("/openapi.json").json
    page = client.get("/docs")
    assert page.status_code == 200 and page.mimetype == "text/html"
    for path, methods in document["paths"].items():
        assert f"<code>{path}</code>" in page.text
        assert all(
            f'id="{operation["operationId"]}"' in page.text for operation in methods.values()
        )
    for name in document["components"]["schemas"]:
        assert f'id="{name}"' in page.text
    assert "curl -s -X POST http://localhost/v1/jobs -H" in page.text
    assert "Authorization: Bearer $FLEET_API_KEY" in page.text


def test_its_links_lead_somewhere_on_it_or_here(client: FlaskClient) -> None:
    page = client.get("/docs").text
    links = set(re.findall('href="([^"]*)"', page))
    assert {"/docs", "/openapi.json", "/v1/models", "/readyz"} <= links
    for link in links:
        if link.startswith("#"):
            assert f'id="{link[1:]}"' in page
        else:
            assert client.get(link).status_code == 200


def test_it_loads_nothing_and_runs_nothing(client: FlaskClient) -> None:
    for path in ("/", "/docs"):
        answer = client.get(path)
        assert not re.search("<script|<link|<img|<iframe|@import|src=", answer.text)
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_the_host_that_is_asked_for_breaks_out_of_nothing(client: FlaskClient) -> None:
    page = client.get("/docs", headers={"Host": "x'$(id)<b>"})
    assert "<b>" not in page.text and "curl -s http://x'$(id)" not in page.text


def test_the_first_page_is_links(client: FlaskClient) -> None:
    page = client.get("/").text
    assert 'href="/docs"' in page and "<details" not in page


def test_an_installed_fleet_has_all_its_files() -> None:
    """What is no Python file is in a wheel only if pyproject.toml says so."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    taken = {
        file
        for package, patterns in data.items()
        for pattern in patterns
        for file in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    for room in ("api", "jobs", "worker", "cli"):
        others = [f for f in (ROOT / room).rglob("*") if f.is_file() and f.suffix[:3] != ".py"]
        assert set(others) <= taken
