"""Pictures that come with a request, as data URLs."""

import base64
import binascii
import io
import re

from PIL import Image

MOST_PIXELS = 64_000_000
KINDS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
_DATA_URL = re.compile(r"data:image/(png|jpeg|webp);base64,")


def picture(url: str) -> Image.Image:
    """Raises: ValueError with a sentence, for what is no whole picture of a reasonable size."""
    head = _DATA_URL.match(url)
    if head is None:
        raise ValueError("must be a data URL of a PNG, JPEG or WebP: data:image/png;base64,…")
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except binascii.Error as error:
        raise ValueError(f"is no base64: {error}") from None
    try:
        found = Image.open(io.BytesIO(data), formats=[KINDS[head[1]]])
        if found.width * found.height > MOST_PIXELS:
            raise ValueError(f"{found.width}x{found.height} is more than {MOST_PIXELS} pixels")
        found.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"can't be read as {head[1].upper()}: {error}") from None
    return found


def checked(url: str) -> str:
    picture(url)
    return url


def shown(url: str) -> str:
    """For an answer: what it was, not all of its bytes."""
    return f"{url[:40]}… ({len(url)} characters)"
