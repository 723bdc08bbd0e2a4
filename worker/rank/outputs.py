"""Frames become a file in the spool, PNG, WebP or MP4 (H.264), and a thumbnail beside it."""

import contextlib
import errno
import hashlib
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from PIL import Image

from jobs.errors import RankDied, SpoolFailed
from jobs.request import JobRequest, VideoInput
from worker.lifeline import bound_to_me
from worker.rank.marks import UNMARKED, Marks

# x264's bytes depend on it: a fixed number gives the same ones on every machine.
THREADS = 16
THUMBNAIL_SIDE = 256  # pixels, at most
HEED_S = 0.2
# What ffmpeg says where the disk, not the video, is why there is no file.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENOENT)
DISK = [os.strerror(number) for number in _DISK]


@contextlib.contextmanager
def spooling() -> Iterator[None]:
    """Raises: SpoolFailed, for a file that the system does not take."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # Pillow's own
            raise
        raise SpoolFailed(f"A result can't be kept on this node: {error}.") from None


class File:
    """Takes frames as they are decoded; a video is encoded meanwhile.

    The same frames and marks give the same bytes: no time, no thread count, no version goes into
    the file.
    """

    def __init__(
        self, request: JobRequest, index: int, folder: Path, marks: Marks = UNMARKED
    ) -> None:
        with spooling():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = folder / f"{index}.{request.output.format}"
        self._format, self._marks = request.output.format, marks
        self._fps = request.input.fps if isinstance(request.input, VideoInput) else None
        self._type = "image" if self._fps is None else "video"
        self._frames, self._shape = 0, (0, 0)
        self._thumbnail = request.output.thumbnail
        self._first: np.ndarray | None = None
        self._video: _Video | None = None

    def add(self, frames: np.ndarray) -> None:
        """frames: uint8 [F, H, W, 3]."""
        self._frames, self._shape = self._frames + len(frames), frames.shape[1:3]
        if self._first is None:
            self._first = frames[0].copy()  # not to hold on to all of them
        if self._fps is None:
            with spooling():
                options = self._marks.picture(self._format)
                Image.fromarray(frames[0]).save(self._path, lossless=True, **options)
            return
        if self._video is None:
            with spooling():
                self._video = _Video(self._path, *self._shape, self._fps, self._marks.video())
        self._video.add(frames)

    def finish(self, heed: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Answers the file and what is to be known of it. heed: called while it waits; what it
        raises ends the waiting. Raises: OSError, SpoolFailed, RankDied."""
        if self._video is not None:
            self._video.finish(heed)
        with spooling():
            data = self._path.read_bytes()
        return {
            "path": str(self._path),
            "content_type": f"{self._type}/{self._path.suffix[1:]}",
            "width": self._shape[1],
            "height": self._shape[0],
            "frames": self._frames,
            "fps": self._fps,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "thumbnail": self._small() if self._thumbnail else None,
        }

    def _small(self) -> dict[str, str]:
        """The first frame as a WebP: its path and its SHA-256."""
        path = self._path.with_suffix(".thumb.webp")
        assert self._first is not None
        picture = Image.fromarray(self._first)
        picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))  # never larger than it is
        with spooling():
            picture.save(path)
            return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}

    def close(self) -> None:
        """Leaves no process behind, finished or not."""
        if self._video is not None:
            self._video.close()


class _Video:
    """ffmpeg, fed by a thread: decoding need not wait for it. tags: a metadata file's text."""

    def __init__(self, path: Path, height: int, width: int, fps: int, tags: str) -> None:
        self._path = path
        # As a file: a command line has less room for it, and every user of the node may read it.
        with tempfile.TemporaryFile() as tags_file:
            tags_file.write(tags.encode())
            tags_file.flush()
            self._words = tempfile.TemporaryFile()  # noqa: SIM115  closed in close()
            self._process = self._start(height, width, fps, tags_file.fileno() if tags else None)
        self._waiting: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        self._feeder = threading.Thread(target=self._feed, name="ffmpeg", daemon=True)
        self._feeder.start()

    def _start(self, height: int, width: int, fps: int, tags: int | None) -> subprocess.Popen:
        """tags: the descriptor of that file."""
        into: list[str] = []
        if tags is not None:  # and not without: it leaves a trace even of none
            into = ["-f", "ffmetadata", "-i", f"/dev/fd/{tags}", "-map_metadata", "1"]
        flags = "+faststart+use_metadata_tags" if into else "+faststart"
        return subprocess.Popen(
            bound_to_me(
                [
                    *(imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"),
                    *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"),
                    *("-r", str(fps), "-i", "-", *into),
                    *("-c:v", "libx264", "-crf", "18", "-preset", "fast", "-pix_fmt", "yuv420p"),
                    # The preset's 30 frames would keep it idle for half of a short video.
                    *("-rc-lookahead", "10"),
                    *("-threads", str(THREADS), "-movflags", flags, "-fflags", "+bitexact"),
                    *("-flags:v", "+bitexact", str(self._path)),
                ]
            ),
            stdin=subprocess.PIPE,
            stdout=self._words,
            stderr=self._words,
            pass_fds=() if tags is None else (tags,),
        )

    def add(self, frames: np.ndarray) -> None:
        self._waiting.put(frames)

    def finish(self, heed: Callable[[], None]) -> None:
        """Leaves no half a video to be published. Raises: OSError with ffmpeg's last words;
        SpoolFailed; RankDied if somebody killed it."""
        self._waiting.put(None)
        while self._process.poll() is None:
            heed()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(HEED_S)
        self._feeder.join()
        if not (code := self._process.returncode):
            return
        self._path.unlink(missing_ok=True)
        self._words.seek(0)
        words = self._words.read().decode(errors="replace")[-300:]
        if code < 0:
            raise RankDied(f"ffmpeg was ended by signal {-code}.")
        if not words or any(reason in words for reason in DISK):  # its words are a file, too
            raise SpoolFailed(f"A video can't be kept on this node: {words}")
        raise OSError(f"ffmpeg: {words}")

    def close(self) -> None:
        self._process.kill()  # nothing to do once it has finished
        self._waiting.put(None)
        self._feeder.join()
        self._process.wait()
        self._words.close()

    def _feed(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            with stdin:
                while (frames := self._waiting.get()) is not None:
                    stdin.write(frames.tobytes())
        except OSError:  # it has ended; finish() says why
            return
