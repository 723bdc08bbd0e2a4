"""What a file of the fleet says of itself, read without its pixels and without ffmpeg."""

import io
import json
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.ExifTags import IFD, Base

MOST_BYTES = 2**24  # of an MP4's tags
MOST_PICTURE_BYTES = 2**29  # Pillow reads a WebP whole
MOST_BOXES = 10_000  # of an MP4, one after the other
_SOURCE = re.compile(rb"http://cv\.iptc\.org/newscodes/digitalsourcetype/\w+")
# What the file says, as it stands there: whatever has its name, and nothing where that is missing.
Said = tuple[object, object]


def read(path: Path) -> tuple[str | None, str | None]:
    """The request that made the file, as JSON for a person, and its digital source type; None for
    what it does not say. Raises: ValueError with a sentence, for what is no file of ours."""
    try:
        if not path.is_file():  # what is none may never end
            raise ValueError("is no file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(12)
            file.seek(0)
            if head[4:8] == b"ftyp":
                parameters, source = _video(file, size)
            elif head.startswith(b"\x89PNG") or head[8:] == b"WEBP":
                parameters, source = _picture(file, size)
            else:
                raise ValueError("is no PNG, WebP or MP4")
    except OSError as error:
        raise ValueError(f"can't be read: {error.strerror}") from None
    found = _SOURCE.search(source) if isinstance(source, bytes) else None
    return _request(parameters), found and found[0].decode()


def _request(text: object) -> str | None:
    """None, where it is another program's."""
    if not isinstance(text, str | bytes):
        return None
    try:
        found = json.loads(text)
        shown = json.dumps(found, indent=2)
    except (ValueError, RecursionError):
        return None
    ours = isinstance(found, dict) and {"model", "task", "input", "output"} <= set(found)
    return shown if ours else None


def _picture(file: BinaryIO, size: int) -> Said:
    if size > MOST_PICTURE_BYTES:
        raise ValueError("is too large for a picture of the fleet")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=["PNG", "WEBP"])
            xmp = image.info.get("xmp")
            if image.format == "PNG":
                return image.info.get("parameters"), xmp
            comment = image.getexif().get_ifd(IFD.Exif).get(Base.UserComment)
            # Its first 8 bytes name the alphabet.
            return comment[8:] if isinstance(comment, bytes) else None, xmp
    except Exception:  # a decoder meets anything, and answers anything
        raise ValueError("is no whole PNG or WebP") from None


def _video(file: BinaryIO, size: int) -> Said:
    """moov/udta/meta of an MP4: `keys` has the tags' names, `ilst` their values by number."""
    place = 0, size
    for kind in (b"moov", b"udta", b"meta"):
        place = _first(file, place, kind)
    start, end = place
    if end - start > MOST_BYTES:
        return None, None
    file.seek(start)
    meta = io.BytesIO(file.read(end - start))
    inside = 4, end - start  # after its version
    start, end = _first(meta, inside, b"keys")
    boxes = list(_boxes(meta, start + 8, end))  # after its version and their count
    names = {n.to_bytes(4): _bytes(meta, *place) for n, (_, *place) in enumerate(boxes, 1)}
    names[b"\xa9cmt"] = b"comment"  # the usual name: whoever copies the streams writes it so
    tags = {}
    for kind, start, end in _boxes(meta, *_first(meta, inside, b"ilst")):
        start, end = _first(meta, (start, end), b"data")
        tags[names.get(kind)] = _bytes(meta, start + 8, end)  # after its type and language
    return tags.get(b"comment"), tags.get(b"digital_source_type")


def _first(file: BinaryIO, place: tuple[int, int], kind: bytes) -> tuple[int, int]:
    """From where to where the content of that box is; nowhere, if there is none."""
    found = ((start, end) for name, start, end in _boxes(file, *place) if name == kind)
    return next(found, (0, 0))


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each box; until one is not what it says."""
    for _ in range(MOST_BOXES):
        if start + 8 > end:
            return
        size, content = int.from_bytes(_bytes(file, start, start + 4)), start + 8
        kind = _bytes(file, start + 4, content)
        if size == 1:
            size, content = int.from_bytes(_bytes(file, content, content + 8)), content + 8
        after = start + size if size else end
        if not content <= after <= end:
            return
        yield kind, content, after
        start = after


def _bytes(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(max(0, end - start))
