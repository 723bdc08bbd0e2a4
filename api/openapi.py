"""/openapi.json: every route of the application as an OpenAPI 3.1 document."""

import copy
import functools
import http
import inspect
import re
from typing import Any

from flask import Blueprint, Flask, Response, current_app, jsonify
from pydantic import TypeAdapter
from werkzeug.routing import IntegerConverter, Rule

from api.bodies import Schema, body_schemas, ref
from api.fleet_schemas import Model, Queue, Usage, WebhookSecret, Worker
from api.routes import HEADERS, OF_V1, PROBLEM, ROUTES, Route
from api.schemas import (
    REF,
    Batch,
    Delivery,
    DryRun,
    ImagesResponse,
    Job,
    LogLine,
    Problem,
    Readiness,
    Upload,
    Video,
    VideoDeleted,
)
from api.services import services
from jobs.version import VERSION

blueprint = Blueprint("openapi", __name__)

TAGS = {
    "Jobs": "Pictures and videos as jobs that are not lost.",
    "Batches": "Many jobs at once, all of them or none.",
    "Uploads": "Pictures that come ahead of a job.",
    "Fleet": "Models, the queue, workers, usage.",
    "OpenAI": "The same for OpenAI's clients.",
    "Service": "For load balancers, monitoring and people. No key is needed.",
}
_ANSWERS: tuple[Any, ...] = (
    *(Problem, Job, DryRun, LogLine, Batch, Delivery, Upload, Model, Queue, Usage, Worker),
    *(ImagesResponse, Video, VideoDeleted, Readiness, WebhookSecret),
)
_LOCATION: Schema = {"description": "The new job's own URL.", "schema": {"type": "string"}}
_LIMIT: Schema = {
    f"RateLimit-{name}": {"description": text, "schema": {"type": "integer"}}
    for name, text in {
        "Limit": "The limit that refused: requests, jobs, GPU seconds.",
        "Remaining": "What is left of it: 0.",
        "Reset": "Seconds until there may be more.",
    }.items()
}
_SECONDS: Schema = {"description": "Seconds until another try.", "schema": {"type": "integer"}}


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """This document."""
    return jsonify(document())


def document() -> Schema:
    """Of the application at hand."""
    return _document(current_app._get_current_object())  # type: ignore[attr-defined]


@functools.cache
def _document(app: Flask) -> Schema:
    schemas = {**_answer_schemas(), **body_schemas(services().catalog)}
    paths: dict[str, Schema] = {}
    public = services().settings.public_url
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        if rule.endpoint == "static":
            continue
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            paths.setdefault(path, {})[method.lower()] = _operation(app, rule)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "diffusion-fleet",
            "version": VERSION,
            "description": "Image and video generation as jobs that are not lost.",
        },
        **({"servers": [{"url": public}]} if public else {}),
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _answer_schemas() -> dict[str, Schema]:
    """By name, those inside of others too."""
    inputs = [(kind.__name__, "serialization", TypeAdapter(kind)) for kind in _ANSWERS]
    _, found = TypeAdapter.json_schemas(inputs, ref_template=REF)  # type: ignore[arg-type]
    schemas: dict[str, Schema] = found["$defs"]
    return schemas


def _operation(app: Flask, rule: Rule) -> Schema:
    route = ROUTES[rule.endpoint]
    text = inspect.getdoc(app.view_functions[rule.endpoint]) or ""
    said = " ".join(text.split())
    summary = re.split(r"(?<=[.;:])\s", said, maxsplit=1)[0].rstrip(".;:")
    open_to_all = not rule.rule.startswith("/v1/")
    operation: Schema = {
        "operationId": rule.endpoint.replace(".", "_"),
        "tags": [route.tag],
        "summary": summary,
        "description": said,
        "parameters": _parameters(rule, route),
        "responses": _responses(route, open_to_all),
    }
    if route.body:
        operation["requestBody"] = {"required": route.body_needed, "content": _content(route)}
    if open_to_all:
        operation["security"] = [{}]
    return operation


def _parameters(rule: Rule, route: Route) -> list[Schema]:
    whole = {name for name, kind in rule._converters.items() if isinstance(kind, IntegerConverter)}
    path = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "integer", "minimum": 0} if name in whole else {"type": "string"},
        }
        for name in re.findall(r"<(?:\w+:)?(\w+)>", rule.rule)
    ]
    query = [{"name": name, "in": "query", "schema": s} for name, s in route.query.items()]
    headers = [
        {"name": name, "in": "header", "description": HEADERS[name], "schema": {"type": "string"}}
        for name in route.headers
    ]
    return [*path, *query, *headers]


def _content(route: Route) -> Schema:
    content: Schema = {kind: {"schema": schema} for kind, schema in route.body.items()}
    if route.example is not None:
        example = copy.deepcopy(route.example)
        model = next(iter(services().catalog))
        asked = example.get("job", example)
        if "model" in asked:
            asked["model"] = model
        content["application/json"]["example"] = example
    return content


def _responses(route: Route, open_to_all: bool) -> Schema:
    responses: Schema = {}
    for status, content in route.answers.items():
        answer: Schema = {"description": http.HTTPStatus(status).phrase}
        if content is not None:
            answer["content"] = {kind: {"schema": schema} for kind, schema in content.items()}
        if status in (201, 202, 302):
            answer["headers"] = {"Location": _LOCATION}
        responses[str(status)] = answer
    for status in sorted({*route.errors, *(() if open_to_all else OF_V1)}):
        answer = {
            "description": http.HTTPStatus(status).phrase,
            "content": {PROBLEM: {"schema": ref("Problem")}},
        }
        if status in (429, 503):
            answer["headers"] = {"Retry-After": _SECONDS, **(_LIMIT if status == 429 else {})}
        responses[str(status)] = answer
    return responses
