"""`fleet inspect` of files that others made, or nobody."""

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.fixtures.pictures import painted

FLEET = str(Path(sys.executable).with_name("fleet"))


def inspect(path: Path, shell: str = 'exec "$@"') -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", shell, "bash", FLEET, "inspect", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def png(**texts: str) -> bytes:
    info, file = PngInfo(), io.BytesIO()
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    painted(mask=False).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def comment(value: Any) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = value
    return exif.tobytes()


def webp(exif: bytes) -> bytes:
    file = io.BytesIO()
    painted(mask=False).save(file, "WEBP", exif=exif)
    return file.getvalue()


def box(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    """An atom of an MP4; size: what it claims to have."""
    return (len(content) + 8 if size is None else size).to_bytes(4) + kind + content


HEAD = box(b"ftyp", b"isom\0\0\2\0")
DEEP = "[" * 100_000 + "]" * 100_000
STRANGE = {
    "empty": b"",
    "short": b"\x89PNG",
    "text": b"a letter to nobody, nothing more",
    "jpeg": b"\xff\xd8\xff\xe0" + b"\0" * 100,
    "png of another program": png(parameters="a castle, Steps: 20", xmp="text"),
    "png with deep JSON": png(parameters=DEEP),
    "png with less deep JSON": png(parameters="[" * 900 + "]" * 900),
    "png with other JSON": png(parameters='{"model": 1}'),
    "png with a list": png(parameters="[1]"),
    "webp of another program": webp(comment(b"UNICODE\0\xff\xfe\0")),
    "webp with a number": webp(comment(7)),
    "webp with half a tag": webp(comment(b"x" * 100)[:30]),
    "webp without a picture": b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 40,
    "mp4 without boxes": HEAD,
    "mp4 with a box without end": HEAD + box(b"moov", b"\0" * 8, 0) + b"\0" * 100,
    "mp4 with a box that is smaller than its head": HEAD + box(b"free", b"", 4) * 100,
    "mp4 with a box larger than the file": HEAD + box(b"moov", b"\0" * 8, 2**32 - 1),
    "mp4 with a box of 2**64": HEAD + box(b"moov", b"\xff" * 8 + b"\0" * 16, 1),
    "mp4 with a long box of no length": HEAD + box(b"moov", b"\0" * 24, 1),
    "mp4 with half a long box": HEAD + box(b"moov", b"\0" * 3, 1),
    "mp4 with a million boxes": HEAD + box(b"free", b"") * 1_000_000,
    "mp4 with empty tags": HEAD + box(b"moov", box(b"udta", box(b"meta", b""))),
    "mp4 with names that lie": HEAD
    + box(
        b"moov",
        box(
            b"udta",
            box(
                b"meta",
                b"\0\0\0\0"
                + box(b"keys", b"\0\0\0\0\xff\xff\xff\xff" + box(b"mdta", b"comment", 2**31))
                + box(b"ilst", box(b"\0\0\0\1", box(b"data", b"\0")) + box(b"\xa9cmt", b"")),
            ),
        ),
    ),
}


@pytest.mark.parametrize("data", STRANGE.values(), ids=STRANGE)
def test_a_foreign_file_is_a_sentence(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "strange"
    file.write_bytes(data)
    began = time.monotonic()
    done = inspect(file)
    assert done.returncode == 1 and done.stdout == "" and time.monotonic() - began < 10
    assert re.fullmatch(r"Error: .*strange (is no|does not) .*\.\n", done.stderr), done.stderr


def test_what_is_no_file_is_a_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "pipe", Path("/dev/zero")):
        done = inspect(path)
        assert done.returncode == 1 and done.stderr == f"Error: {path} is no file.\n"


def test_absurd_sizes_are_not_read(tmp_path: Path) -> None:
    """Sparse files of 4 GB: whoever read them whole would need as much memory."""
    size = 2**32 - 1000
    above = HEAD + box(b"moov", b"", size) + box(b"udta", b"", size - 8)
    heads = {
        "tags.mp4": above + box(b"meta", b"", size - 16),
        "less-than-nothing.mp4": above + box(b"meta", b"", 4),
        "picture.webp": b"RIFF" + (size - 8).to_bytes(4, "little") + b"WEBPVP8 ",
    }
    for name, head in heads.items():
        with (tmp_path / name).open("wb") as file:
            file.write(head)
            file.truncate(len(HEAD) + size)
        done = inspect(tmp_path / name, 'ulimit -v 2000000; exec "$@"')
        said = "is too large" if name == "picture.webp" else "does not say"
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
