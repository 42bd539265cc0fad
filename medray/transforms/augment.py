"""Augment: each epoch sees every film turned, shifted and exposed a little otherwise, every signal scaled and noisy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from medray.transforms import Transform

if TYPE_CHECKING:
    import torch

Share = Annotated[float, Field(ge=0, le=1)]


class Augment(Transform):
    """Images (B, C, H, W) and signals (B, T, C); tables pass unchanged.

    Attributes:
        flip: probability of a mirror image. 0: with the heart on the right a chest is another patient's.
        rotation: degrees at most, either way.
        shift: of the image's side at most.
        scale: of its size at most.
        exposure: brightness and contrast, of the image's own standard deviation at most.
        amplitude: of the signal's at most.
        roll: of the signal's length at most; it is shifted in time, its end comes first.
        noise: standard deviation, in units of the lead's own.
        lead_dropout: probability of a lead being flat, as a missing one is.
    """

    random: ClassVar[bool] = True

    flip: Share = 0.0
    rotation: Annotated[float, Field(ge=0, le=180)] = 10.0
    shift: Share = 0.08
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    exposure: Share = 0.15
    amplitude: Share = 0.1
    roll: Share = 0.1
    noise: Annotated[float, Field(ge=0)] = 0.05
    lead_dropout: Share = 0.05

    def augment(self, values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Each sample is drawn for itself."""
        if values.ndim == 4:
            return self._image(values, generator)
        return self._signal(values, generator) if values.ndim == 3 else values

    def _image(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        import torch
        from torch.nn import functional

        count = len(images)
        angle, right, down, size, light, contrast = (_draw(images, generator, 6, count) * 2 - 1).unbind()
        mirror = 1 - 2 * (_draw(images, generator, count) < self.flip).to(images.dtype)
        angle = angle * math.radians(self.rotation)
        zoom = 1 + size * self.scale
        # rows of the affine map from output to input, in units of half a side
        first = torch.stack([zoom * angle.cos() * mirror, -zoom * angle.sin(), 2 * self.shift * right], dim=1)
        second = torch.stack([zoom * angle.sin() * mirror, zoom * angle.cos(), 2 * self.shift * down], dim=1)
        grid = functional.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
        # what moves in from outside is as dark as the darkest pixel; grid_sample itself would fill in zeros, a mid gray
        floor = images.amin((1, 2, 3), keepdim=True)
        moved = functional.grid_sample(images - floor, grid, align_corners=False) + floor
        spread = images.std((1, 2, 3), keepdim=True)
        light, contrast = (self.exposure * draw.view(-1, 1, 1, 1) for draw in (light, contrast))
        mean = moved.mean((1, 2, 3), keepdim=True)
        return (moved - mean) * (1 + contrast) + mean + light * spread

    def _signal(self, signals: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        import torch

        count, length, leads = signals.shape
        scale, roll = (_draw(signals, generator, 2, count) * 2 - 1).unbind()
        steps = (roll * self.roll * length).round().long()
        times = (torch.arange(length, device=signals.device) - steps[:, None]) % length
        rolled = signals.gather(1, times[:, :, None].expand(-1, -1, leads))
        noise = torch.randn(signals.shape, generator=generator, device=generator.device).to(signals.device)
        noisy = rolled * (1 + self.amplitude * scale)[:, None, None] + self.noise * noise
        kept = _draw(signals, generator, count, leads) >= self.lead_dropout
        return noisy * kept[:, None, :]


def _draw(like: torch.Tensor, generator: torch.Generator, *shape: int) -> torch.Tensor:
    import torch

    return torch.rand(shape, generator=generator, device=generator.device).to(like.device)
