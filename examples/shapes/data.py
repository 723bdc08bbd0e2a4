"""What the model is trained on: a caption and a clip of one flat shape moving on a flat ground."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin, sqrt

import torch

SIDE, FRAMES = 128, 25

COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (40, 165, 70),
    "cyan": (60, 210, 220),
    "blue": (40, 80, 220),
    "purple": (135, 55, 185),
    "pink": (245, 130, 190),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "heart")
HARD = ("star", "cross")
SIZES = {"small": 16, "medium": 22, "large": 28}  # pixels from the centre to the rim
# Each motion and the ways to ask for it.
MOTIONS = {
    "left": ("moving left", "moving to the left", "going left", "sliding to the left"),
    "right": ("moving right", "moving to the right", "going right", "sliding to the right"),
    "up": ("moving up", "moving upwards", "going up", "rising"),
    "down": ("moving down", "moving downwards", "going down", "falling"),
    "growing": ("growing", "getting bigger", "getting larger"),
    "shrinking": ("shrinking", "getting smaller"),
    "spinning": ("spinning", "rotating", "turning"),
    "still": ("standing still", "at rest", "not moving"),
}
SIZE_WORDS = {"small": ("small", "little"), "medium": ("medium",), "large": ("large", "big")}
UNTURNED = ("circle", "ring")  # nobody can see them spin

# To the right and down.
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

SENTENCES = (
    "a {size} {colour} {shape} {motion} on a {background} background",
    "the {size} {colour} {shape} {motion} on {background}",
    "{size} {colour} {shape} {motion}, {background} background",
    "on a {background} background, a {size} {colour} {shape} {motion}",
    "a {size} {colour} {shape} on a {background} background, {motion}",
)
BARE = ("a {size} {colour} {shape} {motion}", "the {size} {colour} {shape} {motion}")


@dataclass(frozen=True)
class Scene:
    shape: str
    colour: str
    background: str
    motion: str
    size: str

    @property
    def possible(self) -> bool:
        unseen = self.motion == "spinning" and self.shape in UNTURNED
        return self.colour != self.background and not unseen

    @property
    def held_out(self) -> bool:
        """One in eight of shape x colour x motion is never trained on."""
        shape, colour = SHAPES.index(self.shape), list(COLOURS).index(self.colour)
        motion = list(MOTIONS).index(self.motion)
        return (shape + 3 * colour + 5 * motion) % 8 == 0

    @property
    def caption(self) -> str:
        return self.written(SENTENCES[0], self.size, MOTIONS[self.motion][0])

    def written(self, sentence: str, size: str, motion: str) -> str:
        words = sentence.format(
            size=size,
            colour=self.colour,
            shape=self.shape,
            motion=motion,
            background=self.background,
        )
        return re.sub(r"\ba (?=[aeiou])", "an ", " ".join(words.split()))


def random_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """A scene of the training set, which has more of what is hard to draw, or of the other one."""
    while True:
        scene = Scene(
            rng.choice(SHAPES if held_out else SHAPES + HARD),
            rng.choice(list(COLOURS)),
            rng.choice(list(COLOURS)),
            rng.choice([*MOTIONS] if held_out else [*MOTIONS, "spinning"]),
            rng.choice(list(SIZES)),
        )
        if scene.possible and scene.held_out == held_out:
            return scene


def random_caption(scene: Scene, rng: random.Random) -> str:
    """One of the ways to ask for the scene. What a caption is silent about is free; a word that is
    not of the vocabulary here and there teaches the model to read over it."""
    sentence = rng.choice(BARE if rng.random() < 0.1 else SENTENCES)
    size = rng.choice(SIZE_WORDS[scene.size]) if rng.random() < 0.5 else ""
    motion = rng.choice(MOTIONS[scene.motion]) if rng.random() < 0.85 else ""
    words = scene.written(sentence, size, motion).split()
    if rng.random() < 0.15:
        for _ in range(rng.randint(1, 3)):
            words.insert(rng.randint(0, len(words)), "<unk>")
    return " ".join(words)


def vocabulary() -> list[str]:
    """Every word of every caption."""
    phrases = [*SENTENCES, *BARE, *COLOURS, *SHAPES]
    for ways in (*MOTIONS.values(), *SIZE_WORDS.values()):
        phrases += ways
    words = " ".join(phrases).replace(",", " ").split()
    return sorted({word for word in words if not word.startswith("{")})


def draw(
    scenes: list[Scene], generator: torch.Generator, frames: int = FRAMES, window: int = SIDE
) -> torch.Tensor:
    """Clips [B, 3, frames, window, window] in [-1, 1] on the generator's device. Place, pace and
    angle are random; a shorter clip of the same generator state is the beginning of a longer one,
    and a smaller window is what is around the shape's way."""
    device = generator.device
    path = _paths(scenes, generator)
    axis = torch.arange(window, device=device) + 0.5
    corner = [
        (middle[:, :frames].mean(1) - window / 2).clamp(0, SIDE - window).round()
        for middle in path[:2]
    ]
    cover = torch.empty(len(scenes), frames, window, window, device=device)
    for shape, distance in DISTANCES.items():
        rows = [i for i, scene in enumerate(scenes) if scene.shape == shape]
        if not rows:
            continue
        x, y, radius, angle = (v[rows, :frames, None, None] for v in path)
        left, top = (c[rows, None, None, None] for c in corner)
        dx, dy = left + axis - x, top + axis[:, None] - y
        turned = (
            (dx * angle.cos() + dy * angle.sin()) / radius,
            (dy * angle.cos() - dx * angle.sin()) / radius,
        )
        cover[rows] = (0.5 - distance(*turned) * radius).clamp(0, 1)
    front, back = (
        torch.tensor([COLOURS[name] for name in names], device=device)[:, :, None, None, None]
        for names in ([s.colour for s in scenes], [s.background for s in scenes])
    )
    return (back + cover[:, None] * (front - back)) / 127.5 - 1


Path = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _paths(scenes: list[Scene], generator: torch.Generator) -> Path:
    """Centre x and y, radius (pixels) and angle of each frame, [B, FRAMES] each."""

    def uniform(low: float, high: float) -> torch.Tensor:
        draws = torch.rand(len(scenes), 1, generator=generator, device=generator.device)
        return low + draws * (high - low)

    def per_scene(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=generator.device)[:, None]

    time = torch.arange(FRAMES, device=generator.device) / (FRAMES - 1)
    swell = per_scene([{"growing": 0.8, "shrinking": -0.8}.get(s.motion, 0.0) for s in scenes])
    radius = per_scene([SIZES[s.size] for s in scenes]) * uniform(0.9, 1.1)
    radius = radius * (1 + swell * (time - 0.5))
    travel = uniform(34, 46)
    speed = [per_scene([DIRECTIONS.get(s.motion, (0, 0))[k] for s in scenes]) for k in (0, 1)]
    room = SIDE / 2 - radius.amax(1, keepdim=True) - 2
    centres = []
    for direction in speed:
        middle = SIDE / 2 + uniform(-1, 1) * (room - travel / 2 * direction.abs())
        centres.append(middle + direction * travel * (time - 0.5))
    spin = per_scene([float(s.motion == "spinning") for s in scenes])
    turn = uniform(1.8, 2.6) * torch.where(uniform(-1, 1) < 0, -1, 1)
    angle = spin * (uniform(0, 2 * pi) + turn * time)
    return centres[0], centres[1], radius, angle


# -- signed distances to shapes of radius 1, y down; after https://iquilezles.org/articles/distfunctions2d/

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _circle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.hypot(x, y) - 1


def _square(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.85


def _triangle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    sides = torch.maximum(x.abs() * sqrt(3) / 2 - y / 2, y)
    return sides - 0.55


def _diamond(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.abs() / 0.62 + y.abs() - 1.05) / sqrt(1 + 0.62**-2)


def _cross(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = x.abs(), y.abs()
    return torch.minimum(
        torch.maximum(x - 1, y - 0.32),
        torch.maximum(y - 1, x - 0.32),
    )


def _ring(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (torch.hypot(x, y) - 0.77).abs() - 0.23


def _star(x: torch.Tensor, y: torch.Tensor, inner: float = 0.45) -> torch.Tensor:
    x, y = x.abs(), -y
    a, b = cos(pi / 5), sin(pi / 5)
    for side in (1, -1):  # fold the plane onto one tip
        over = 2 * (side * a * x - b * y).clamp(min=0)
        x, y = x - over * side * a, y + over * b
    x, y = x.abs(), y - 1.08
    edge = (inner * b, inner * a - 1)
    along = ((x * edge[0] + y * edge[1]) / (edge[0] ** 2 + edge[1] ** 2)).clamp(0, 1.08)
    outside = torch.sign(y * edge[0] - x * edge[1])
    return torch.hypot(x - edge[0] * along, y - edge[1] * along) * outside


def _heart(x: torch.Tensor, y: torch.Tensor, scale: float = 0.58) -> torch.Tensor:
    x, y = x.abs() * scale, 0.52 - y * scale
    lobe = torch.hypot(x - 0.25, y - 0.75) - sqrt(2) / 4
    slope = (x + y).clamp(min=0) / 2
    tip = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - slope, y - slope))
    return torch.where(x + y > 1, lobe, tip * torch.sign(x - y)) / scale


DISTANCES: dict[str, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "diamond": _diamond,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
}
