"""Sky, lights, clouds and grounds."""

import colorsys
import math

import skia

from pastel_tiny.brush import Brush, Point, ellipse, paint, pen, polygon
from pastel_tiny.palette import CREAM, MIDNIGHT, PLUM, RGB, WHITE, colour, mix
from pastel_tiny.scenes import Scene


def dim(tint: RGB, night: bool, share: float = 0.5) -> RGB:
    """Return a colour as it looks at night: darker, with its own hue. Mixed with blue alone, orange would be muddy."""
    if not night:
        return tint
    hue, saturation, value = colorsys.rgb_to_hsv(*tint)
    dark = colorsys.hsv_to_rgb(hue, min(1.0, saturation * (1 + 0.4 * share)), value * (1 - 0.75 * share))
    return mix(dark, MIDNIGHT, 0.3 * share)


def sky(brush: Brush, scene: Scene, horizon: float) -> RGB:
    """Paint the sky and return its colour at the horizon, which distant hills take on."""
    rng = brush.rng
    top = dim(colour(scene.sky, rng), scene.night, 0.6)
    low = mix(top, dim(CREAM, scene.night, 0.45), 0.42)
    brush.gradient(0.0, horizon + 0.15, top, low)
    for _ in range(30):
        y = rng.uniform(0, horizon)
        tint = mix(mix(top, low, y / horizon), WHITE, rng.uniform(-0.08, 0.16))
        brush.bristles((rng.uniform(0, brush.aspect), y), rng.uniform(0.08, 0.2), rng.uniform(-0.12, 0.12), tint,
                       rng.uniform(0.015, 0.05), 0.3)  # fmt: skip
    return low


def _sun(brush: Brush, x: float, y: float, radius: float, tint: RGB, glow: RGB) -> None:
    for size in (1.75, 1.42):
        brush.canvas.drawCircle(x, y, radius * size, paint(glow, 0.30))
    for index in range(16):
        angle = index * math.pi / 8
        inner, outer = radius * 1.2, radius * (1.62 if index % 2 else 1.42)
        brush.canvas.drawLine(x + inner * math.cos(angle), y + inner * math.sin(angle), x + outer * math.cos(angle),
                              y + outer * math.sin(angle), pen(tint, 0.013))  # fmt: skip
    brush.form(ellipse(x, y, radius), tint, 10, outline=0.012)
    for ring in (0.72, 0.45, 0.2):  # a spiral of thick paint, visible at the larger sizes
        brush.canvas.drawCircle(x, y, radius * ring, pen(mix(tint, WHITE, 0.45), 0.004, 0.8))


def _moon(brush: Brush, x: float, y: float, radius: float, tint: RGB, glow: RGB) -> None:
    brush.canvas.drawCircle(x, y, radius * 1.6, paint(glow, 0.28))
    disc, bite = ellipse(x, y, radius), ellipse(x + radius * 0.55, y - radius * 0.22, radius * 0.86)
    brush.form(skia.Op(disc, bite, skia.PathOp.kDifference_PathOp), tint, 10, outline=0.012)


def _stars(brush: Brush, horizon: float, number: int) -> None:
    rng = brush.rng
    for _ in range(number):
        x, y, size = rng.uniform(0, brush.aspect), rng.uniform(0.03, horizon * 0.85), rng.uniform(0.014, 0.034)
        turn = [(size if k % 2 == 0 else size * 0.38, k * math.pi / 4) for k in range(8)]
        star = polygon([(x + r * math.cos(a), y + r * math.sin(a)) for r, a in turn])
        brush.canvas.drawPath(star, paint((1.0, 0.98, 0.78)))
        brush.canvas.drawPath(star, pen((0.86, 0.66, 0.42), 0.003, 0.7))


def _rainbow(brush: Brush, horizon: float) -> None:
    radius = 0.46 * max(1.0, brush.aspect**0.5)
    for index, word in enumerate(("red", "orange", "yellow", "green", "blue", "purple")):
        ring = radius - 0.027 * index
        brush.canvas.drawCircle(brush.aspect / 2, horizon + 0.06, ring, pen(colour(word), 0.028, 0.95))
        brush.canvas.drawCircle(brush.aspect / 2, horizon + 0.06, ring, pen(mix(colour(word), WHITE, 0.5), 0.003, 0.8))


def lights(brush: Brush, scene: Scene, horizon: float, sky_tint: RGB) -> Point | None:
    """Paint the light and return the position of sun or moon, which the sea reflects."""
    rng, count = brush.rng, 0.27 if brush.aspect < 1 else 0.3
    if scene.light == "rainbow":
        _rainbow(brush, horizon)
    if scene.light == "stars" or (scene.night and scene.light == "moon"):
        _stars(brush, horizon, 20 if scene.light == "stars" else 7)
    if scene.light not in ("sun", "moon"):
        return None
    x = brush.aspect * (0.5 + count * ((scene.light_side == "right") - (scene.light_side == "left")))
    x += rng.uniform(-0.03, 0.03)
    # without a subject, the light is the subject: larger, and nearer to the horizon
    radius = rng.uniform(0.085, 0.11) if scene.subject else rng.uniform(0.115, 0.155)
    y = rng.uniform(0.17, 0.25) if scene.subject else rng.uniform(0.24, 0.36)
    tint = colour(scene.light_colour, rng)
    glow = mix(sky_tint, WHITE if not scene.night else tint, 0.6)
    (_sun if scene.light == "sun" else _moon)(brush, x, y, radius, tint, glow)
    return x, y


def clouds(brush: Brush, scene: Scene) -> None:
    """Paint heaps of white with a shaded underside."""
    rng = brush.rng
    gray = 0.0 if scene.weather == "clouds" else 0.28  # rain and snow fall from darker clouds
    white, shade = (dim(mix(tint, (0.62, 0.62, 0.74), gray), scene.night, 0.35) for tint in (WHITE, (0.86, 0.84, 0.95)))
    for _ in range(rng.choice((2, 3))):
        x, y, size = rng.uniform(0.1, 0.9) * brush.aspect, rng.uniform(0.08, 0.34), rng.uniform(0.042, 0.065)
        puffs = [
            ((k - 2) * size * 0.85, -abs(math.sin(k * 1.9)) * size * 0.7, size * rng.uniform(0.75, 1.1))
            for k in range(5)
        ]
        for dx, dy, radius in puffs:
            brush.canvas.drawCircle(x + dx, y + dy + size * 0.22, radius, paint(shade, 0.9))
        for dx, dy, radius in puffs:
            brush.canvas.drawCircle(x + dx, y + dy, radius * 0.93, paint(white, 0.95))
            brush.canvas.drawCircle(x + dx, y + dy, radius * 0.6, pen(shade, 0.003, 0.8))


def falling(brush: Brush, scene: Scene) -> None:
    """Paint rain or snow over everything; flakes are dots in the small picture and crystals in the large one."""
    rng, canvas = brush.rng, brush.canvas
    if scene.weather == "rain":
        for _ in range(int(70 * brush.aspect)):
            x, y, length = rng.uniform(0, brush.aspect), rng.uniform(0, 1), rng.uniform(0.025, 0.05)
            canvas.drawLine(x, y, x - 0.3 * length, y + length, pen((0.80, 0.88, 1.0), 0.0065, 0.85))
            canvas.drawLine(x, y, x - 0.3 * length, y + length, pen(WHITE, 0.002, 0.9))
    elif scene.weather == "snowfall":
        for _ in range(int(60 * brush.aspect)):
            x, y, size = rng.uniform(0, brush.aspect), rng.uniform(0, 1), rng.uniform(0.007, 0.014)
            canvas.drawCircle(x, y, size, paint(WHITE, 0.92))
            for k in range(3):
                dx, dy = 1.5 * size * math.cos(k * math.pi / 3), 1.5 * size * math.sin(k * math.pi / 3)
                canvas.drawLine(x - dx, y - dy, x + dx, y + dy, pen(WHITE, 0.002, 0.9))


def _waves(brush: Brush, horizon: float, tint: RGB, light: tuple[Point, RGB] | None) -> None:
    rng, deep, crest = brush.rng, mix(tint, PLUM, 0.2), mix(tint, WHITE, 0.45)
    brush.gradient(horizon, 1.0, mix(tint, WHITE, 0.22), mix(tint, PLUM, 0.1))
    for _ in range(75):
        y = horizon + (1 - horizon) * rng.random() ** 1.2
        near = (y - horizon) / (1 - horizon)
        shade = rng.choice((crest, deep, mix(crest, WHITE, 0.5)))
        brush.bristles((rng.uniform(0, brush.aspect), y), 0.02 + 0.06 * near, 0.0, shade, 0.004 + 0.011 * near, 0.65)
    if light is None:
        return
    (x, _), glow = light
    for index in range(9):  # the light's path over the water
        y = horizon + 0.012 + index * (1 - horizon) / 10
        brush.bristles((x + rng.uniform(-0.02, 0.02), y), rng.uniform(0.05, 0.1), 0.0, glow, 0.012, 0.85)


def _ridges(brush: Brush, scene: Scene, horizon: float, tint: RGB, sky_tint: RGB) -> None:
    rng = brush.rng
    for layer in range(3):
        base, shade = horizon - 0.03 + 0.11 * layer, mix(mix(tint, sky_tint, 0.5), tint, layer / 2)
        points: list[Point] = [(0.0, 1.0), (0.0, base)]
        if scene.ground == "hills" or layer == 2:
            phase, waves = rng.uniform(0, 6), rng.uniform(1.2, 2.0) * math.pi
            points += [(brush.aspect * k / 24, base - 0.055 * math.sin(phase + waves * k / 24)) for k in range(25)]
        else:
            x = -0.12
            while x < brush.aspect + 0.1:
                width, height = rng.uniform(0.2, 0.3), rng.uniform(0.17, 0.28) * (1.15 - 0.45 * layer)
                points += [(x + width / 2, base - height), (x + width, base)]
                _snow_cap(brush, x + width / 2, base - height, mix(shade, WHITE, 0.75), layer)
                x += width * 0.85
        points.append((brush.aspect, 1.0))
        brush.form(polygon(points), shade, 34, angle=0.2 if scene.ground == "hills" else 1.1, outline=0.006)
    _blades(brush, horizon + 0.2, tint, 70)


def _snow_cap(brush: Brush, x: float, y: float, tint: RGB, layer: int) -> None:
    """Paint a snow cap. The mountain is painted over it, so it shows as a pale edge above the summit."""
    if layer == 0:
        brush.canvas.drawPath(polygon([(x, y - 0.012), (x + 0.05, y + 0.05), (x - 0.05, y + 0.05)]), paint(tint))


def _blades(brush: Brush, top: float, tint: RGB, number: int) -> None:
    rng, tints = brush.rng, (mix(tint, WHITE, 0.35), mix(tint, PLUM, 0.28), mix(tint, PLUM, 0.15))
    for _ in range(number):
        y = top + (1 - top) * rng.random()
        x, height = rng.uniform(0, brush.aspect), 0.012 + 0.05 * (y - top)
        brush.canvas.drawLine(x, y, x + rng.uniform(-0.01, 0.01), y - height, pen(rng.choice(tints), 0.0045, 0.8))


def _meadow(brush: Brush, horizon: float, tint: RGB) -> None:
    rng = brush.rng
    brush.gradient(horizon, 1.0, mix(tint, WHITE, 0.18), mix(tint, PLUM, 0.08))
    _blades(brush, horizon, tint, 190)
    for _ in range(22):
        y = horizon + 0.04 + (1 - horizon) * rng.random()
        x, size = rng.uniform(0, brush.aspect), 0.005 + 0.03 * (y - horizon)
        for k in range(5):  # five petals: a dot in the small picture, a flower in the large one
            angle = k * math.tau / 5
            brush.canvas.drawCircle(x + size * math.cos(angle), y + size * math.sin(angle), size * 0.65, paint(WHITE))
        brush.canvas.drawCircle(x, y, size * 0.55, paint((1.0, 0.78, 0.4)))


def _dunes(brush: Brush, horizon: float, tint: RGB, snow: bool) -> None:
    rng = brush.rng
    near = mix(tint, (0.72, 0.78, 0.95) if snow else PLUM, 0.4 if snow else 0.12)
    brush.gradient(horizon, 1.0, tint, tint)
    for layer in range(4):
        top, phase = horizon + 0.02 + 0.09 * layer, rng.uniform(0, 6)
        crest = [(brush.aspect * k / 24, top - 0.028 * math.sin(phase + 5 * k / 24)) for k in range(25)]
        shade = mix(mix(tint, WHITE, 0.35), near, layer / 3)
        brush.form(polygon([(0.0, 1.0), *crest, (brush.aspect, 1.0)]), shade, 14, angle=0.1, outline=0.005)
    for _ in range(60):
        x, y = rng.uniform(0, brush.aspect), rng.uniform(horizon + 0.03, 1)
        brush.stroke((x, y), rng.uniform(0.006, 0.02), 0.0, mix(tint, rng.choice((WHITE, PLUM)), 0.35), 0.003, 0.6)


def ground(brush: Brush, scene: Scene, horizon: float, sky_tint: RGB, light: Point | None) -> None:
    """Paint everything below the horizon, and the hills that rise above it."""
    tint = dim(colour(scene.ground_colour, brush.rng), scene.night, 0.42)
    if scene.ground == "sea":
        glow = mix(colour(scene.light_colour), WHITE, 0.15) if light else WHITE
        _waves(brush, horizon, tint, (light, glow) if light else None)
    elif scene.ground == "meadow":
        _meadow(brush, horizon, tint)
    elif scene.ground in ("desert", "snow"):
        _dunes(brush, horizon, tint, scene.ground == "snow")
    else:
        _ridges(brush, scene, horizon, tint, sky_tint)
