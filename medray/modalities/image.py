"""Image: a film or slice of any size and depth -> a square of 8-bit pixels.

Pixels of 8 bits are taken as they are. Deeper ones are cut to the window between the 0.5 and 99.5 percentile of the
train split, found from a sketch that merges exactly (DDSketch: Masson, Rim, Lee, VLDB 2019). The aspect is kept, by
black bars: a stretched heart is a larger heart.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from medray.errors import DataError
from medray.modalities import Modality, Rows, State

if TYPE_CHECKING:
    import torch

    Array = np.ndarray[Any, Any]

WINDOW = (0.005, 0.995)  # quantiles of the train split's pixels
GRID = 64  # at most GRID x GRID pixels of an image go into the sketch
SMALLEST = 1e-3  # magnitudes below it count as zero
GAMMA = 1.01  # ratio of neighbouring buckets: a quantile is right within 0.5 %
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
MEAN, STD = 0.5, 0.25  # fixed, so that loading needs no state; black is -2, white is 2
POOLED = 16  # pixels a side that the baseline sees
SHOWN = 384  # pixels a side, at least, of what people see
GLOW = ((94, 22, 139), (201, 48, 110), (250, 130, 50), (255, 222, 60))  # colours of a heat map, from faint to strong
OPACITY = 0.6  # of the strongest place: what lies below stays visible


class Image(Modality):
    """Gray or colour images; assets are (H, W) or (H, W, 3).

    Attributes:
        size: pixels a side.
        channels: 1 turns colour into luminance; 3 repeats gray.
    """

    encoder: ClassVar[str] = "cnn"
    explainer: ClassVar[str] = "grad_cam"
    storage: ClassVar[Literal["uint8", "float16", "float32"]] = "uint8"
    axes: ClassVar[tuple[str, ...]] = ("channels", "height", "width")

    size: Annotated[int, Field(ge=16, le=1024)] = 64
    channels: Literal[1, 3] = 1

    def partial(self, rows: Rows) -> State:
        """How many images, and a sketch of the pixels of those deeper than 8 bits."""
        sketch: Counter[int] = Counter()
        images = [_checked(asset) for asset in rows.assets or [] if asset is not None]
        for image in images:
            if image.dtype != np.uint8:
                height, width = image.shape[:2]
                sketch.update(_buckets(image[:: -(-height // GRID), :: -(-width // GRID)]))
        return {"images": len(images), "sketch": {str(bucket): count for bucket, count in sorted(sketch.items())}}

    def merge(self, partials: Sequence[State]) -> State:
        """`window`: the grays that become black and white, or None where every image has 8 bits."""
        total: Counter[int] = Counter()
        for partial in partials:
            total.update({int(bucket): int(count) for bucket, count in partial["sketch"].items()})
        window = [_quantile(total, q) for q in WINDOW] if total else None
        return {"images": sum(partial["images"] for partial in partials), "window": window}

    def shape(self, state: State) -> tuple[int, ...]:
        """(C, S, S)."""
        del state
        return (self.channels, self.size, self.size)

    def names(self, state: State) -> list[str]:
        """The channels."""
        del state
        return ["gray"] if self.channels == 1 else ["red", "green", "blue"]

    def encode(self, rows: Rows, state: State) -> Array:
        """(n, C, S, S) from 0, black, to 1, in steps of 1/255."""
        encoded = np.zeros((len(rows), *self.shape(state)), np.float32)
        for index, asset in enumerate(rows.assets or []):
            if asset is not None:
                encoded[index] = self._square(_eight_bits(_checked(asset), state["window"]))
        encoded /= 255
        return encoded

    def store(self, encoded: Array) -> Array:
        """8 bits: what `encode` gives is kept exactly."""
        stored: Array = np.rint(encoded * 255).astype(np.uint8)
        return stored

    def load(self, stored: torch.Tensor) -> torch.Tensor:
        """Black is -2, white is 2."""
        return stored.float().mul_(1 / (255 * STD)).sub_(MEAN / STD)

    def features(self, stored: Array) -> Array:
        """Means of 16 x 16 fields of the gray image."""
        gray = stored.mean(1, dtype=np.float32) / 255
        edges = np.linspace(0, self.size, POOLED + 1).astype(int)
        sums = np.add.reduceat(np.add.reduceat(gray, edges[:-1], axis=1), edges[:-1], axis=2)
        sides = np.diff(edges)
        means: Array = (sums / np.outer(sides, sides)).reshape(len(stored), -1).astype(np.float32)
        return means

    def show(self, stored: Array, attribution: Array, state: State) -> bytes:
        """The image with a heat map that is clear where nothing speaks for the answer, and a line around its core."""
        from PIL import Image as Pillow

        del state
        side = self.size * -(-SHOWN // self.size)
        pixels = np.repeat(stored, 3 // self.channels, axis=0).transpose(1, 2, 0)
        image = np.asarray(Pillow.fromarray(pixels).resize((side, side), Pillow.Resampling.BICUBIC), np.float32)
        heat = np.abs(attribution).sum(0) if attribution.ndim == 3 else np.maximum(attribution, 0)
        heat = placed((heat / max(float(heat.max()), 1e-12)).astype(np.float32), self.size, side).clip(0, 1)
        # 256 colours looked up: interpolating each of 150,000 pixels takes a third of an answer's time
        levels, steps = np.linspace(0, 1, 256), np.linspace(0, 1, len(GLOW))
        table = np.stack([np.interp(levels, steps, channel) for channel in zip(*GLOW, strict=True)], axis=-1)
        colours = table.astype(np.float32)[np.rint(heat * 255).astype(np.uint8)]
        opacity = (np.float32(OPACITY) * heat)[..., None]
        core = heat > 0.5
        border = core ^ (core & np.roll(core, 2, 0) & np.roll(core, -2, 0) & np.roll(core, 2, 1) & np.roll(core, -2, 1))
        blended = image + (colours - image) * opacity
        blended[border] = GLOW[-1]
        file = io.BytesIO()
        Pillow.fromarray(np.rint(blended).astype(np.uint8)).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def _square(self, image: Array) -> Array:
        """Fitted into size x size with its aspect kept, antialiased; (C, S, S)."""
        from PIL import Image as Pillow

        if image.ndim == 3 and self.channels == 1:
            image = np.rint(image @ LUMINANCE).astype(np.uint8)
        height, width = image.shape[:2]
        scale = self.size / max(height, width)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        # reducing_gap: integer box reduction first, which is several times faster and looks the same
        resized = np.asarray(Pillow.fromarray(image).resize(inner, Pillow.Resampling.BILINEAR, reducing_gap=3.0))
        top, left = (self.size - inner[1]) // 2, (self.size - inner[0]) // 2
        square = np.zeros((self.channels, self.size, self.size), np.uint8)
        planes = resized if image.ndim == 2 else resized.transpose(2, 0, 1)
        square[:, top : top + inner[1], left : left + inner[0]] = planes
        return square


def placed(heat: Array, size: int, side: int) -> Array:
    """A map (h, w) over an image of size x size pixels, refined to (side, side), each cell where it looks.

    A strided convolution with an odd kernel and padding of half of it looks at the pixels 0, stride, 2 stride, ...: a
    cell's centre is not that of its share of the image, but half a stride nearer to the top left.
    """
    from PIL import Image as Pillow

    padded = Pillow.fromarray(np.pad(heat.astype(np.float32), ((0, 1), (0, 1)), mode="edge"))
    height, width = heat.shape
    down, right = 0.5 - height / size / 2, 0.5 - width / size / 2  # in cells; 0 where a cell is a pixel
    box = (right, down, width + right, height + down)
    refined: Array = np.asarray(padded.resize((side, side), Pillow.Resampling.BICUBIC, box=box))
    return refined


def _checked(asset: Array) -> Array:
    if asset.ndim not in {2, 3} or (asset.ndim == 3 and asset.shape[2] != 3) or 0 in asset.shape:
        raise DataError(f"an image has shape (height, width) or (height, width, 3), not {asset.shape}")
    return np.ascontiguousarray(asset)


def _eight_bits(image: Array, window: Sequence[float] | None) -> Array:
    if image.dtype == np.uint8:
        return image
    values = np.nan_to_num(image.astype(np.float32))
    # without a window the train split held no such image: its own percentiles are all there is to go by
    low, high = map(float, window if window is not None else np.quantile(values, WINDOW))
    np.clip(values, low, high, out=values)
    values -= np.float32(low)
    values *= np.float32(255 / max(high - low, 1e-6))
    eight: Array = np.rint(np.clip(values, 0, 255, out=values)).astype(np.uint8)
    return eight


def _buckets(values: Array) -> dict[int, int]:
    """Counts of signed logarithmic buckets; 0 holds the zeros."""
    values = values[np.isfinite(values)].astype(np.float64)
    magnitude = np.abs(values)
    bucket = np.ceil(np.log(np.maximum(magnitude, SMALLEST) / SMALLEST) / math.log(GAMMA)).astype(int) + 1
    signed = np.where(magnitude < SMALLEST, 0, np.where(values < 0, -bucket, bucket))
    keys, counts = np.unique(signed, return_counts=True)
    return dict(zip(keys.tolist(), counts.tolist(), strict=True))


def _quantile(sketch: Counter[int], share: float) -> float:
    rank, seen = share * (sum(sketch.values()) - 1), 0
    for bucket in sorted(sketch):
        seen += sketch[bucket]
        if seen > rank:
            break
    middle = SMALLEST * GAMMA ** (abs(bucket) - 1) * 2 / (1 + GAMMA)
    return 0.0 if bucket == 0 else math.copysign(middle, bucket)
