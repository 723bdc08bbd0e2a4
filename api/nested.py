"""Values within values, as forms name them: `metadata[user]`, `prompt[]`, `loras[][name]`."""

import re
from collections.abc import Sequence
from typing import Any

from werkzeug.datastructures import MultiDict

from jobs.errors import InvalidRequest, Problem

DEEPEST, MOST = 8, 1000  # names in a name; values with such names


def unfolded(form: MultiDict[str, str]) -> dict[str, Any]:
    """The fields, as text, in objects and lists. The values of `a[][b]` and of `a[][c]` go to the
    elements of a list one after another: a form has no other order. Of a plain name that comes
    twice the first counts.

    Raises: InvalidRequest, for a name that is malformed, deeper than DEEPEST or at odds with
    another one, and for more than MOST values.
    """
    fields: dict[str, Any] = {}
    count = 0
    for name, values in form.lists():
        path = _path(name)
        if len(path) == 1:
            _put(fields, path, values[0], name)
            continue
        count += len(values)
        if count > MOST:
            raise _wrong(name, f"More than {MOST} values within others.")
        if "" in path:
            split = path.index("")
            _put_each(_list(fields, path[:split], name), path[split + 1 :], values, name)
        elif len(values) > 1:
            raise _wrong(name, f"It comes twice; a list is {name[:80]}[].")
        else:
            _put(fields, path, values[0], name)
    return fields


def _path(name: str) -> list[str]:
    if len(name) > 1000 or not re.fullmatch(r"[^\[\]]*(\[[^\[\]]*\])*", name):
        raise _wrong(name, "Write a name within another one as a[b], a list's as a[].")
    path = re.split(r"\]?\[", name.removesuffix("]")) if "[" in name else [name]
    if len(path) > DEEPEST:
        raise _wrong(name, f"More than {DEEPEST} names in one.")
    if path.count("") > 1 or (path[0] == "" and len(path) > 1):
        raise _wrong(name, "A list of lists, or a name without a beginning, is not known here.")
    return path


def _object(fields: dict[str, Any], path: Sequence[str], name: str) -> dict[str, Any]:
    for part in path:
        fields = fields.setdefault(part, {})
        if not isinstance(fields, dict):
            raise _at_odds(name)
    return fields


def _put(fields: dict[str, Any], path: Sequence[str], value: Any, name: str) -> None:
    place = _object(fields, path[:-1], name)
    if path[-1] in place:
        raise _at_odds(name)
    place[path[-1]] = value


def _list(fields: dict[str, Any], path: Sequence[str], name: str) -> list[Any]:
    found = _object(fields, path[:-1], name).setdefault(path[-1], [])
    if not isinstance(found, list):
        raise _at_odds(name)
    return found


def _put_each(place: list[Any], path: Sequence[str], values: Sequence[str], name: str) -> None:
    """path: within an element; empty where the values are the elements."""
    if not path:
        if place:
            raise _at_odds(name)
        place.extend(values)
        return
    if not place:
        place.extend({} for _ in values)
    if len(place) != len(values):
        raise _wrong(name, "It has not as many values as the others of its list.")
    for element, value in zip(place, values, strict=True):
        if not isinstance(element, dict):
            raise _at_odds(name)
        _put(element, path, value, name)


def _at_odds(name: str) -> InvalidRequest:
    return _wrong(name, "It is at odds with another name of the form.")


def _wrong(name: str, detail: str) -> InvalidRequest:
    return InvalidRequest(f"{name[:80]}: {detail}", Problem(f"/{name[:80]}", "name", detail))
