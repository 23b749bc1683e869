"""A thin layer over skia: a canvas in units of the picture's height, and the strokes that all paintings are made of.

Nothing has an outline. Forms are gradients of light, and dabs of soft colour follow them.
"""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import skia
from numpy.typing import NDArray

from pastel_tiny.palette import PLUM, RGB, WHITE, mix

Point = tuple[float, float]


def paint(tint: RGB, alpha: float = 1.0, blur: float = 0.0) -> skia.Paint:
    """Return a paint that fills; `blur` is the softness of its edge, in heights of the picture."""
    result = skia.Paint(Color4f=skia.Color4f(*tint, alpha), AntiAlias=True)
    if blur:
        result.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, blur))
    return result


def pen(tint: RGB, width: float, alpha: float = 1.0, blur: float = 0.0) -> skia.Paint:
    """Return a paint for strokes with round ends."""
    result = paint(tint, alpha, blur)
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


def curve(start: Point, *bends: tuple[Point, Point]) -> skia.Path:
    """Return a closed path of quadratic curves, each given by its control point and its end."""
    path = skia.Path()
    path.moveTo(*start)
    for control, end in bends:
        path.quadTo(*control, *end)
    path.close()
    return path


def ellipse(x: float, y: float, width: float, height: float | None = None) -> skia.Path:
    """Return an ellipse by its centre and radii."""
    height = width if height is None else height
    path = skia.Path()
    path.addOval(skia.Rect(x - width, y - height, x + width, y + height))
    return path


def union(paths: Sequence[skia.Path]) -> skia.Path:
    """Return what any of the paths covers."""
    result = skia.Path()
    for path in paths:
        result = skia.Op(result, path, skia.PathOp.kUnion_PathOp)
    return result


def _colour(tint: RGB, alpha: float = 1.0) -> int:
    return int(skia.Color4f(*tint, alpha).toColor())


class Brush:
    """Draws on one picture. y runs from 0 to 1, x from 0 to the aspect ratio, whatever the number of pixels."""

    def __init__(self, width: int, height: int, rng: random.Random) -> None:
        self.rng = rng
        self.solid = False
        """Whether only what has a surface is drawn: no light and no shadows. Depth maps are made of it."""
        self.aspect = width / height
        self.surface = skia.Surface(width, height)
        self.canvas = self.surface.getCanvas()
        self.canvas.scale(height, height)

    def pixels(self) -> NDArray[np.uint8]:
        """Return the picture as height x width x 3 bytes."""
        return np.ascontiguousarray(self.surface.toarray(colorType=skia.kRGBA_8888_ColorType)[..., :3])

    def wash(self, path: skia.Path, tints: Sequence[RGB], start: Point, end: Point, alpha: float = 1.0) -> None:
        """Fill a path with a gradient of colours between two points."""
        shader = skia.GradientShader.MakeLinear([start, end], [_colour(tint, alpha) for tint in tints])
        self.canvas.drawPath(path, skia.Paint(Shader=shader, AntiAlias=True, Dither=True))

    def band(self, top: float, bottom: float, tints: Sequence[RGB], alphas: Sequence[float] = ()) -> None:
        """Fill the band between two heights with a vertical gradient."""
        colours = [_colour(tint, alpha) for tint, alpha in zip(tints, alphas or [1.0] * len(tints), strict=True)]
        shader = skia.GradientShader.MakeLinear([(0, top), (0, bottom)], colours)
        self.canvas.drawRect(
            skia.Rect(0, top, self.aspect, bottom), skia.Paint(Shader=shader, AntiAlias=True, Dither=True)
        )

    def glow(self, at: Point, radius: float, tint: RGB, alpha: float) -> None:
        """Lay light around a point; it fades to nothing at the radius."""
        if self.solid:
            return
        stops = [_colour(tint, alpha * share) for share in (1.0, 0.5, 0.16, 0.0)]
        shader = skia.GradientShader.MakeRadial(at, radius, stops, [0.0, 0.35, 0.68, 1.0])
        self.canvas.drawCircle(*at, radius, skia.Paint(Shader=shader, AntiAlias=True, Dither=True))

    def dab(self, at: Point, length: float, width: float, angle: float, tint: RGB, alpha: float) -> None:
        """Paint one dab around a point: an ellipse of soft pastel chalk. Length and width are its radii."""
        self.canvas.save()
        self.canvas.translate(*at)
        self.canvas.rotate(math.degrees(angle))
        self.canvas.drawOval(skia.Rect(-length, -width, length, width), paint(tint, alpha))
        self.canvas.restore()

    def form(
        self,
        path: skia.Path,
        tint: RGB,
        dabs: int = 20,
        angle: Callable[[float, float], float] = lambda across, down: 0.9,
        size: float = 0.03,
        contrast: float = 1.0,
    ) -> None:
        """Paint a solid thing, lit from the upper left. `angle` tells how dabs lie at a place of its box (0 to 1)."""
        box, rng = path.getBounds(), self.rng
        light, dark = mix(tint, WHITE, 0.30 * contrast), mix(tint, PLUM, 0.26 * contrast)
        ends = (box.left() + 0.15 * box.width(), box.top()), (box.right() - 0.15 * box.width(), box.bottom())
        self.wash(path, (light, tint, dark), *ends)
        self.canvas.save()
        self.canvas.clipPath(path, True)
        for _ in range(dabs):
            across, down = rng.random(), rng.random()
            shade = mix(light, dark, min(1.0, max(0.0, 0.5 * across + 0.5 * down + rng.uniform(-0.28, 0.28))))
            at = box.left() + across * box.width(), box.top() + down * box.height()
            length = size * rng.uniform(0.6, 1.2)
            self.dab(at, length, 0.3 * length, angle(across, down) + rng.uniform(-0.25, 0.25), shade, 0.35)
        self.canvas.restore()

    def shadow(self, x: float, y: float, width: float, height: float, tint: RGB, alpha: float = 0.4) -> None:
        """Lay a soft shadow on the ground."""
        if self.solid:
            return
        self.canvas.drawOval(skia.Rect(x - width, y - height, x + width, y + height), paint(tint, alpha, 0.4 * height))
