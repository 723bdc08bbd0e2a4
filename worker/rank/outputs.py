"""Frames become a file in the spool: PNG, WebP or MP4 (H.264)."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from PIL import Image

from jobs.request import JobRequest, TextToVideo


def save(frames: np.ndarray, request: JobRequest, index: int, folder: Path) -> dict[str, Any]:
    """frames: uint8 [F, H, W, 3]. Answers the file and what is to be known of it.

    The same frames give the same bytes: no time, no thread count, no version goes into the file.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{index}.{request.output.format}"
    fps = request.input.fps if isinstance(request, TextToVideo) else None
    if fps is not None:
        _write_mp4(frames, path, fps)
        content_type = "video/mp4"
    else:
        Image.fromarray(frames[0]).save(path, lossless=True)
        content_type = f"image/{request.output.format}"
    data = path.read_bytes()
    return {
        "path": str(path),
        "content_type": content_type,
        "width": frames.shape[2],
        "height": frames.shape[1],
        "frames": frames.shape[0],
        "fps": fps,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _write_mp4(frames: np.ndarray, path: Path, fps: int) -> None:
    """Raises: OSError with ffmpeg's last words, and leaves no half a video to be published."""
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    command = [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-"),
        *("-c:v", "libx264", "-crf", "18", "-preset", "medium", "-pix_fmt", "yuv420p"),
        *("-threads", "8", "-movflags", "+faststart", "-fflags", "+bitexact"),
        *("-flags:v", "+bitexact", str(path)),
    ]
    done = subprocess.run(command, input=frames.tobytes(), capture_output=True)
    if done.returncode:
        path.unlink(missing_ok=True)
        raise OSError(f"ffmpeg: {done.stderr.decode(errors='replace')[-300:]}")
