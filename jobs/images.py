"""Pictures that come with a request: they are kept as data URLs."""

import base64
import binascii
import io
import re
import threading

from PIL import Image, ImageOps

MOST_BYTES = 20_000_000
MOST_PIXELS = 4096 * 4096
MOST_SCANS = 64  # of a progressive JPEG: each costs as much to decode as the whole picture
KINDS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
_MAGIC = re.compile(rb"(\x89PNG\r\n\x1a\n)|(\xff\xd8\xff)|(RIFF....WEBP)", re.DOTALL)
_DATA_URL = re.compile(r"data:image/(png|jpeg|webp);base64,")
_AT_ONCE = threading.Semaphore(2)  # a picture of a few KB may take 64 MB while it is decoded


def picture(url: str) -> Image.Image:
    """Raises: ValueError with a sentence, for what is no whole picture of a reasonable size."""
    head = _DATA_URL.match(url)
    if head is None:
        raise ValueError("must be a data URL of a PNG, JPEG or WebP: data:image/png;base64,…")
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except binascii.Error as error:
        raise ValueError(f"is no base64: {error}") from None
    if head[1] == "jpeg" and data.count(b"\xff\xda") > MOST_SCANS:
        raise ValueError(f"has more than {MOST_SCANS} scans")
    with _AT_ONCE:
        try:
            found = Image.open(io.BytesIO(data), formats=[KINDS[head[1]]])
        except Image.DecompressionBombError:
            raise ValueError(f"has more than {MOST_PIXELS} pixels") from None
        except Exception:  # a decoder meets anything, and answers anything
            raise ValueError(f"can't be read as {head[1].upper()}") from None
        if found.width * found.height > MOST_PIXELS:
            raise ValueError(f"{found.width}x{found.height} is more than {MOST_PIXELS} pixels")
        try:
            found.load()
        except Exception as error:
            raise ValueError(f"can't be read as {head[1].upper()}: {error}") from None
        try:
            return ImageOps.exif_transpose(found)  # a phone's picture may lie on its side
        except Exception:  # its EXIF is broken: as it lies, then
            return found


def content_type(data: bytes) -> str | None:
    """By its first bytes, whatever anybody says that it is; None: no PNG, JPEG or WebP."""
    found = _MAGIC.match(data)
    return f"image/{list(KINDS)[found.lastindex - 1]}" if found and found.lastindex else None


def data_url(data: bytes) -> str | None:
    """None: no PNG, JPEG or WebP."""
    kind = content_type(data)
    return f"data:{kind};base64,{base64.b64encode(data).decode()}" if kind else None


def shown(url: str) -> str:
    """For an answer: what it was, not all of its bytes."""
    return f"{url[:40]}… ({len(url)} characters)"
