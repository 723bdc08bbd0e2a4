"""Which colours, shape and motion a clip really has, in plain numpy, with no model and no judge.

The silhouettes are drawn here anew, not taken from the generator: the two must agree.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from examples.shapes.data import COLOURS

STEADY = 0.75  # overlap with the best silhouette below which a shape is none
PALETTE = np.array(list(COLOURS.values()), float)


@dataclass(frozen=True)
class Seen:
    """A None was not to be told. motion: None too for a single picture."""

    colour: str | None
    background: str
    shape: str | None
    motion: str | None


def detect(frames: np.ndarray) -> Seen:
    """frames: uint8 [F, H, W, 3]."""
    pixels = frames.astype(float)
    rim = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1)
    back = np.median(rim.reshape(-1, 3), axis=0)
    contrast = np.linalg.norm(pixels - back, axis=-1)
    strong = np.percentile(contrast, 99.5)
    background = _colour(back)
    masks = contrast > strong / 2
    if strong < 25 or min(m.sum() for m in masks) < 20:
        return Seen(None, background, None, None)
    colour = _colour(np.median(pixels[contrast > 0.8 * strong], axis=0))
    return Seen(colour, background, _shape(masks), _motion(masks) if len(masks) > 1 else None)


def _colour(rgb: np.ndarray) -> str:
    return list(COLOURS)[int(np.linalg.norm(PALETTE - rgb, axis=1).argmin())]


# -- silhouettes: is the point inside? y down, any scale


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    fold = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    reach = np.hypot(x, y)
    u, v = reach * np.cos(fold), reach * np.sin(fold)  # the edge runs from (1, 0) to the notch
    notch = 0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5)
    inside: np.ndarray = (u - 1) * notch[1] <= v * (notch[0] - 1)
    return inside


SILHOUETTES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: np.hypot(x, y) <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 1,
    "triangle": lambda x, y: (y <= 0.5) & (abs(x) * 3**0.5 <= 1 + y),
    "star": _star,
    "diamond": lambda x, y: abs(x) / 0.62 + abs(y) <= 1,
    "cross": lambda x, y: (np.maximum(abs(x), abs(y)) <= 1) & (np.minimum(abs(x), abs(y)) <= 0.32),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.77) <= 0.23,
    "heart": lambda x, y: (x * x * 1.3 + y * y - 0.8) ** 3 <= -x * x * 1.6 * y**3,
}


def _moments(mask: np.ndarray) -> tuple[float, float, float]:
    """Centre x, centre y and area, in pixels."""
    rows, columns = np.nonzero(mask)
    return columns.mean(), rows.mean(), float(len(rows))


def _normal(shape: str) -> tuple[float, float, float]:
    """The silhouette's centre and area at scale 1."""
    axis = np.linspace(-1.5, 1.5, 301)
    x, y = np.meshgrid(axis, axis)
    column, row, area = _moments(SILHOUETTES[shape](x, y))
    step = axis[1] - axis[0]
    return axis[0] + column * step, axis[0] + row * step, area * step * step


NORMALS = {shape: _normal(shape) for shape in SILHOUETTES}


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def _cut_out(mask: np.ndarray) -> np.ndarray:
    """What is in the mask, with a margin that a silhouette may reach into."""
    rows, columns = np.nonzero(mask)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    margin = (bottom - top + right - left) // 4 + 2
    return np.pad(mask[top : bottom + 1, left : right + 1], margin)


def _shape(masks: np.ndarray) -> str | None:
    """The silhouette that fits best in a few frames, each scaled to the area and turned about."""
    scores = dict.fromkeys(SILHOUETTES, 0.0)
    chosen = masks[np.linspace(0, len(masks) - 1, min(3, len(masks))).astype(int)]
    for mask in map(_cut_out, chosen):
        column, row, area = _moments(mask)
        dy, dx = np.indices(mask.shape, float)
        dx, dy = dx - column, dy - row
        for shape, inside in SILHOUETTES.items():
            middle_x, middle_y, normal = NORMALS[shape]
            scale = (normal / area) ** 0.5
            overlaps = []
            for turn in np.radians(range(0, 360, 12)):
                x = (dx * np.cos(turn) + dy * np.sin(turn)) * scale + middle_x
                y = (dy * np.cos(turn) - dx * np.sin(turn)) * scale + middle_y
                overlaps.append(_overlap(mask, inside(x, y)))
            scores[shape] += max(overlaps) / len(chosen)
    best = max(scores, key=lambda shape: scores[shape])
    return best if scores[best] >= STEADY else None


def _motion(masks: np.ndarray) -> str | None:
    """By the way of the centre, then by the area, then by the turning outline."""
    first, last = _moments(masks[0]), _moments(masks[-1])
    part = (len(masks) - 1) / 24  # a shorter clip moves less
    right, down = ((last[k] - first[k]) / masks.shape[1] for k in (0, 1))
    if max(abs(right), abs(down)) > 0.12 * part:
        if min(abs(right), abs(down)) > 0.5 * max(abs(right), abs(down)):
            return None
        if abs(right) > abs(down):
            return "right" if right > 0 else "left"
        return "down" if down > 0 else "up"
    swell = last[2] / first[2]
    if not 1.5**-part < swell < 1.5**part:
        return "growing" if swell > 1 else "shrinking"
    alike = min(_overlap(_centred(masks[0]), _centred(mask)) for mask in masks)
    return "still" if alike > 0.8 else "spinning"


def _centred(mask: np.ndarray) -> np.ndarray:
    column, row, _ = _moments(mask)
    shift = round(mask.shape[0] / 2 - row), round(mask.shape[1] / 2 - column)
    return np.roll(mask, shift, (0, 1))
