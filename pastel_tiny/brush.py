"""A thin layer over skia: a canvas in units of the picture's height, and strokes that look like thick paint."""

import math
import random
from collections.abc import Sequence

import numpy as np
import skia
from numpy.typing import NDArray

from pastel_tiny.palette import PLUM, RGB, WHITE, mix

Point = tuple[float, float]


def paint(tint: RGB, alpha: float = 1.0) -> skia.Paint:
    """Return a paint that fills."""
    return skia.Paint(Color4f=skia.Color4f(*tint, alpha), AntiAlias=True)


def pen(tint: RGB, width: float, alpha: float = 1.0) -> skia.Paint:
    """Return a paint for strokes with round ends."""
    result = paint(tint, alpha)
    result.setStyle(skia.Paint.kStroke_Style)
    result.setStrokeWidth(width)
    result.setStrokeCap(skia.Paint.kRound_Cap)
    result.setStrokeJoin(skia.Paint.kRound_Join)
    return result


def polygon(points: Sequence[Point]) -> skia.Path:
    """Return a closed path through the points."""
    path = skia.Path()
    path.moveTo(*points[0])
    for point in points[1:]:
        path.lineTo(*point)
    path.close()
    return path


def ellipse(x: float, y: float, width: float, height: float | None = None) -> skia.Path:
    """Return an ellipse by its centre and radii."""
    height = width if height is None else height
    path = skia.Path()
    path.addOval(skia.Rect(x - width, y - height, x + width, y + height))
    return path


class Brush:
    """Draws on one picture. y runs from 0 to 1, x from 0 to the aspect ratio, whatever the number of pixels."""

    def __init__(self, width: int, height: int, rng: random.Random) -> None:
        self.rng = rng
        self.aspect = width / height
        self.surface = skia.Surface(width, height)
        self.canvas = self.surface.getCanvas()
        self.canvas.scale(height, height)

    def pixels(self) -> NDArray[np.uint8]:
        """Return the picture as height x width x 3 bytes."""
        return np.ascontiguousarray(self.surface.toarray(colorType=skia.kRGBA_8888_ColorType)[..., :3])

    def gradient(self, top: float, bottom: float, first: RGB, second: RGB) -> None:
        """Fill the band between two heights with a vertical gradient."""
        ends = [skia.Color4f(*first, 1.0).toColor(), skia.Color4f(*second, 1.0).toColor()]
        shader = skia.GradientShader.MakeLinear([(0, top), (0, bottom)], ends)
        self.canvas.drawRect(skia.Rect(0, top, self.aspect, bottom), skia.Paint(Shader=shader, AntiAlias=True))

    def stroke(self, at: Point, length: float, angle: float, tint: RGB, width: float, alpha: float) -> None:
        """Paint one straight dab around a point."""
        (x, y), dx, dy = at, length * math.cos(angle), length * math.sin(angle)
        self.canvas.drawLine(x - dx, y - dy, x + dx, y + dy, pen(tint, width, alpha))

    def bristles(self, at: Point, length: float, angle: float, tint: RGB, width: float, alpha: float) -> None:
        """Paint a dab with the marks of its bristles: hair-thin lines that only a large picture resolves."""
        self.stroke(at, length, angle, tint, width, alpha)
        for step in (-0.3, 0.02, 0.33):
            shade = mix(tint, WHITE if self.rng.random() < 0.6 else PLUM, 0.3)
            dx, dy = -math.sin(angle) * step * width, math.cos(angle) * step * width
            self.stroke((at[0] + dx, at[1] + dy), length * self.rng.uniform(0.5, 1), angle, shade, 0.0022, 0.5)

    def form(self, path: skia.Path, tint: RGB, dabs: int = 24, angle: float = 0.9, outline: float = 0.010) -> None:
        """Paint a solid object: filled, lit from the upper left with visible dabs, and outlined in a darker tint."""
        box, rng = path.getBounds(), self.rng
        self.canvas.drawPath(path, paint(tint))
        self.canvas.save()
        self.canvas.clipPath(path, True)
        dark, light = mix(tint, PLUM, 0.26), mix(tint, WHITE, 0.34)
        for _ in range(dabs):
            x, y = rng.uniform(box.left(), box.right()), rng.uniform(box.top(), box.bottom())
            across = (x - box.left()) / max(1e-6, box.width())
            down = (y - box.top()) / max(1e-6, box.height())
            shade = mix(light, dark, min(1.0, max(0.0, 0.55 * across + 0.45 * down + rng.uniform(-0.2, 0.2))))
            length = rng.uniform(0.012, 0.035)
            self.bristles((x, y), length, angle + rng.uniform(-0.3, 0.3), shade, rng.uniform(0.010, 0.022), 0.55)
        self.canvas.restore()
        self.canvas.drawPath(path, pen(mix(tint, PLUM, 0.62), outline))
