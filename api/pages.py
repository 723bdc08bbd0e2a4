"""/ and /docs: pages for people, from the OpenAPI document; they load nothing from elsewhere."""

import json
import shlex
from typing import Any

from flask import Blueprint, Response, make_response, render_template, request

from api.bodies import Schema
from api.openapi import TAGS, document

blueprint = Blueprint("pages", __name__)


@blueprint.get("/")
def start() -> Response:
    """A page with links."""
    return _page(render_template("docs.html", about=document()["info"], groups=None))


@blueprint.get("/docs")
def docs() -> Response:
    """This document as a page: every operation with its parameters, schemas and a curl command."""
    about = document()
    groups = [(tag, text, _of(about, tag)) for tag, text in TAGS.items()]
    schemas = about["components"]["schemas"]
    return _page(
        render_template(
            "docs.html", about=about["info"], groups=groups, schemas=schemas, name=_name, text=_text
        )
    )


def _page(text: str) -> Response:
    response = make_response(text)
    response.headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'"
    return response


def _of(about: Schema, tag: str) -> list[Schema]:
    return [
        {**operation, "path": path, "method": method, "curl": _curl(path, method, operation)}
        for path, methods in about["paths"].items()
        for method, operation in methods.items()
        if tag in operation["tags"]
    ]


def _curl(path: str, method: str, operation: Schema) -> str:
    """A command for a shell, in which a path's names stand for themselves."""
    words = ["curl", "-s"] if method == "get" else ["curl", "-s", "-X", method.upper()]
    words.append(shlex.quote(request.root_url.rstrip("/") + path))
    if "security" not in operation:
        words += ["-H", '"Authorization: Bearer $FLEET_API_KEY"']
    content = operation.get("requestBody", {}).get("content", {})
    example = content.get("application/json", {}).get("example")
    if example is not None:
        words += ["-H", "'Content-Type: application/json'", "-d", shlex.quote(json.dumps(example))]
    elif "multipart/form-data" in content:
        words += ["-F", "..."]
    return " ".join(words)


def _name(schema: Any) -> str | None:
    """Of a schema that has its own place on the page."""
    return schema["$ref"].rpartition("/")[2] if "$ref" in schema else None


def _text(schema: Any) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False)
