"""What callers send, as JSON schema: of the classes that parse it, less what they may leave out."""

from typing import Any

from pydantic import TypeAdapter

from api.batches import MOST
from api.openai_asked import INPUT, READ_OVER, TOP
from api.schemas import REF
from api.uploads import TYPES
from jobs.catalog import Catalog
from jobs.images import MOST_BYTES
from jobs.request import REQUESTS, FromMaskedImage, JobRequest, VideoFromImage

Schema = dict[str, Any]
# Required of a whole request; a caller who leaves it out gets the model's own.
FILLED = {
    *("task", "seed", "width", "height", "num_inference_steps", "guidance_scale"),
    *("num_frames", "fps"),
}
# Where null is the same as silence.
_SILENT = {
    *(kind.__name__ for kind in REQUESTS.values()),
    *("ImageInput", "VideoInput", "FromImage", "FromMaskedImage", "VideoFromImage"),
    *("ImageOutput", "VideoOutput", "Webhook"),
}
FILE: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}


def ref(name: str) -> Schema:
    return {"$ref": REF.format(model=name)}


def body_schemas(catalog: Catalog) -> dict[str, Schema]:
    """By name, those inside of others too."""
    whole = TypeAdapter(JobRequest).json_schema(ref_template=REF)
    schemas: dict[str, Schema] = whole["$defs"]
    for name in _SILENT & set(schemas):
        schemas[name] = _as_asked(schemas[name])
    for task, kind in REQUESTS.items():
        able = [spec.id for spec in catalog.values() if task in spec.tasks]
        schemas[kind.__name__]["properties"]["model"] = {"type": "string", "enum": able}
        if not able:  # an enum of nothing is no schema
            del schemas[kind.__name__]
    kinds = [kind.__name__ for kind in REQUESTS.values() if kind.__name__ in schemas]
    schemas["JobRequest"] = {"anyOf": [ref(name) for name in kinds]}
    changes = {name: field for kind in kinds for name, field in schemas[kind]["properties"].items()}
    changes |= {"input": {"type": "object"}, "output": {"type": "object"}, "task": {}, "model": {}}
    about = "What is to be otherwise; the fields of `input` and `output` one by one."
    schemas["RetryRequest"] = _object({}, changes, description=about)
    schemas["JobForm"] = _object(
        {"request": ref("JobRequest")}, additionalProperties=FILE, description=_FORM
    )
    return {**schemas, **_others(), **_openai()}


_FORM = 'Each file is named by a picture of the job: {"file": "part"}.'


def _as_asked(schema: Schema) -> Schema:
    needed = [name for name in schema.get("required", ()) if name not in FILLED]
    fields = {
        name: field if name in needed else _or_null(field)
        for name, field in schema["properties"].items()
    }
    if "prompt" in fields:
        for name in ("image", "mask", "strength"):
            fields.setdefault(name, {"type": "null"})
    return {**schema, "required": needed, "properties": fields}


def _or_null(schema: Schema) -> Schema:
    if "anyOf" in schema:
        null = {"type": "null"}
        options = schema["anyOf"]
        return {**schema, "anyOf": options if null in options else [*options, null]}
    about: Schema = {k: schema[k] for k in ("title", "description", "default") if k in schema}
    inner = {k: v for k, v in schema.items() if k not in about}
    return {**about, "anyOf": [inner, {"type": "null"}]}


def _object(required: Schema, optional: Schema | None = None, **more: Any) -> Schema:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
        "additionalProperties": False,
        **more,
    }


def _others() -> dict[str, Schema]:
    jobs = {"type": "array", "items": ref("JobRequest"), "minItems": 1, "maxItems": MOST}
    values = {"type": "array", "items": {}, "minItems": 1}
    matrix = {"type": "object", "additionalProperties": values, "minProperties": 1}
    about = "The job once for each combination of the values at these dotted paths."
    size = {"type": "integer", "minimum": 1, "maximum": MOST_BYTES}
    return {
        "BatchRequest": {
            "anyOf": [
                _object({"jobs": jobs}),
                _object({"job": {"type": "object"}, "matrix": {**matrix, "description": about}}),
            ]
        },
        "UploadForm": _object({"file": FILE}),
        "UploadRequest": _object({"content_type": {"enum": TYPES}, "bytes": size}),
    }


def _openai() -> dict[str, Schema]:
    """Their fields, and ours beside them; all but files may be text."""
    defs = TypeAdapter(FromMaskedImage | VideoFromImage).json_schema(ref_template=REF)["$defs"]
    ours = {**defs["VideoFromImage"]["properties"], **defs["FromMaskedImage"]["properties"]}
    plain: Schema = {name: _or_text(ours[name]) for name in sorted(INPUT - {"image", "mask"})}
    plain |= {name: {} for name in sorted(TOP - {"model"})}
    plain |= {"model": {"type": ["string", "null"]}, "size": {"type": ["string", "null"]}}
    plain |= {name: {"description": "Read over."} for name in sorted(READ_OVER)}
    still = {k: v for k, v in plain.items() if k not in ("prompt", "fps", "num_frames")}
    still |= {
        "response_format": {"enum": ["b64_json", "url", None]},
        "output_format": {"enum": ["png", "webp", None]},
        "stream": {"description": "true: server-sent events, one for each picture."},
    }
    moving = {k: v for k, v in plain.items() if k not in ("prompt", "strength")}
    moving["seconds"] = {"type": ["string", "number", "null"]}
    files = {"anyOf": [FILE, {"type": "array", "items": FILE}]}
    kinds = [_object({name: {"type": "string"}}) for name in ("image_url", "file_id")]
    referred: Schema = {"anyOf": [*kinds, {"type": "null"}]}
    prompt = {"prompt": ours["prompt"]}
    more = {"strength": still.pop("strength")}
    edit = _object(prompt, {**still, **more, "image": files, "image[]": files, "mask": FILE})
    return {
        "ImageGeneration": _object(prompt, still),
        "ImageEdit": edit,
        "VideoRequest": _object(prompt, {**moving, "input_reference": referred}),
        "VideoForm": _object(prompt, {**moving, "input_reference": FILE}),
        "Remix": _object({"prompt": {"type": "string", "minLength": 1}}),
    }


def _or_text(schema: Schema) -> Schema:
    return {"anyOf": [_or_null(schema), {"type": "string"}]}
