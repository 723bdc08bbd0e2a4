"""Which colours, shape and motion a clip really has, in plain numpy, with no model and no judge.

The silhouettes are drawn here anew, not taken from the generator: the two must agree.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from examples.shapes.data import COLOURS

FITS = 0.75  # overlap with the best silhouette below which a shape is none
NEAR = 60  # distance in RGB beyond which a colour is none of the palette
MOST = 0.7  # of a shape's pixels must have its colour
TURNED = 0.85  # median overlap with its first outline above which a shape does not turn
LEAP = 0.06  # of the side, from one frame to the next: more is a jump, not a motion
PALETTE = np.array(list(COLOURS.values()), float)


@dataclass(frozen=True)
class Seen:
    """A None was not to be told. motion: None for a picture too."""

    colour: str | None
    background: str | None
    shape: str | None
    motion: str | None


def detect(frames: np.ndarray) -> Seen:
    """frames: uint8 [F, H, W, 3]. Colours must be the same in each of five frames, the shape in
    most of them, and no other shape in any: an outline may be indistinct here and there."""
    pixels = frames.astype(float)
    rim = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1)
    grounds = np.median(rim, axis=1)
    contrast = np.linalg.norm(pixels - grounds[:, None, None], axis=-1)
    masks = contrast > np.percentile(contrast, 99.5) / 2
    few = np.unique(np.linspace(0, len(frames) - 1, 5).astype(int))
    background = _agreed(_colour(grounds[i][None]) for i in few)
    if contrast.max() < 25 or min(m.sum() for m in masks) < 20:
        return Seen(None, background, None, None)
    colour = _agreed(_colour(pixels[i][_inner(masks[i])]) for i in few)
    shape = _most([_shape(masks[i]) for i in few])
    return Seen(colour, background, shape, _motion(masks) if len(masks) > 1 else None)


def _agreed(answers: Iterable[str | None]) -> str | None:
    different = set(answers)
    return different.pop() if len(different) == 1 else None


def _most(answers: list[str | None]) -> str | None:
    distinct = [answer for answer in answers if answer is not None]
    return _agreed(distinct) if 2 * len(distinct) > len(answers) else None


def _colour(pixels: np.ndarray) -> str | None:
    """pixels: [N, 3]."""
    distances = np.linalg.norm(pixels[:, None] - PALETTE, axis=-1)
    names = np.where(distances.min(1) < NEAR, distances.argmin(1), -1)
    counts = np.bincount(names + 1, minlength=len(PALETTE) + 1)[1:]
    best = int(counts.argmax())
    return list(COLOURS)[best] if counts[best] >= MOST * len(pixels) else None


def _inner(mask: np.ndarray) -> np.ndarray:
    """Without its rim, where the two colours mix; the mask itself where it is all rim."""
    whole = np.pad(mask, 1)
    inner = mask & whole[:-2, 1:-1] & whole[2:, 1:-1] & whole[1:-1, :-2] & whole[1:-1, 2:]
    return inner if inner.sum() >= 10 else mask


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


def _shape(mask: np.ndarray) -> str | None:
    """The silhouette that fits best, scaled to the area and turned about."""
    mask = _cut_out(mask)
    column, row, area = _moments(mask)
    dy, dx = np.indices(mask.shape, float)
    dx, dy = dx - column, dy - row
    scores = {}
    for shape, inside in SILHOUETTES.items():
        middle_x, middle_y, normal = NORMALS[shape]
        scale = (normal / area) ** 0.5
        overlaps = []
        for turn in np.radians(range(0, 360, 12)):
            x = (dx * np.cos(turn) + dy * np.sin(turn)) * scale + middle_x
            y = (dy * np.cos(turn) - dx * np.sin(turn)) * scale + middle_y
            overlaps.append(_overlap(mask, inside(x, y)))
        scores[shape] = max(overlaps)
    best = max(scores, key=lambda shape: scores[shape])
    return best if scores[best] >= FITS else None


def _motion(masks: np.ndarray) -> str | None:
    """By the way of the centre, then by the area, then by the turning outline: steady, or none."""
    path = np.array([_moments(mask) for mask in masks])  # [F, (x, y, area)]
    centres, sizes = path[:, :2] / masks.shape[1], np.log(path[:, 2])
    if np.abs(np.diff(centres, axis=0)).max() > LEAP:
        return None
    part = (len(masks) - 1) / 24  # a shorter clip moves less
    way = centres[-1] - centres[0]
    axis = int(np.abs(way).argmax())
    if abs(way[axis]) > 0.12 * part:
        straight = abs(way[1 - axis]) < 0.5 * abs(way[axis])
        steady = straight and _steady(centres[:, axis])
        return (("left", "right"), ("up", "down"))[axis][int(way[axis] > 0)] if steady else None
    if abs(sizes[-1] - sizes[0]) > np.log(1.5) * part:
        grows = sizes[-1] > sizes[0]
        return ("growing" if grows else "shrinking") if _steady(sizes) else None
    first = _centred(masks[0])
    alike = np.median([_overlap(first, _centred(mask)) for mask in masks[1:]])
    return "still" if alike > TURNED else "spinning"


def _steady(values: np.ndarray) -> bool:
    """Each quarter goes the way of the whole, none by more than three quarters of it."""
    quarters = np.diff(values[np.linspace(0, len(values) - 1, 5).astype(int)])
    shares = quarters / (values[-1] - values[0])
    return bool((shares > 0.05).all() and (shares < 0.75).all())


def _centred(mask: np.ndarray) -> np.ndarray:
    column, row, _ = _moments(mask)
    shift = round(mask.shape[0] / 2 - row), round(mask.shape[1] / 2 - column)
    return np.roll(mask, shift, (0, 1))
