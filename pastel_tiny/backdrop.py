"""Sky, lights, clouds and grounds."""

import colorsys
import math
from collections.abc import Callable

import skia

from pastel_tiny.brush import Brush, Point, ellipse, paint, pen, polygon, union
from pastel_tiny.palette import CREAM, MIDNIGHT, PLUM, RGB, WHITE, colour, mix
from pastel_tiny.scenes import Scene

Shape = Callable[[float], float]


def dim(tint: RGB, night: bool, share: float = 0.5) -> RGB:
    """Return a colour as it looks at night: darker, with its own hue. Mixed with blue alone, orange would be muddy."""
    if not night:
        return tint
    hue, saturation, value = colorsys.rgb_to_hsv(*tint)
    dark = colorsys.hsv_to_rgb(hue, min(1.0, saturation * (1 + 0.4 * share)), value * (1 - 0.75 * share))
    return mix(dark, MIDNIGHT, 0.3 * share)


def airy(tint: RGB, night: bool) -> RGB:
    """Return a colour as a wide surface has it: paler than a thing, like chalk on paper."""
    return tint if night else mix(tint, CREAM, 0.17)


def sky(brush: Brush, scene: Scene, horizon: float) -> RGB:
    """Paint the sky, which gets lighter towards the horizon, and return its colour there: distant hills take it on."""
    rng = brush.rng
    tint = airy(dim(colour(scene.sky, rng), scene.night, 0.62), scene.night)
    top = mix(tint, PLUM, 0.0 if scene.night else 0.07)
    low = mix(tint, dim(CREAM, scene.night, 0.5), 0.62)
    brush.band(0.0, horizon + 0.2, (top, tint, mix(tint, low, 0.55), low))
    for _ in range(12):  # broad strokes that follow the horizon
        y = rng.uniform(0, horizon)
        shade = mix(mix(top, low, y / horizon), WHITE, rng.uniform(-0.02, 0.10 if scene.night else 0.22))
        at, length = (rng.uniform(0, brush.aspect), y), rng.uniform(0.15, 0.4)
        brush.dab(at, length, length * rng.uniform(0.07, 0.13), rng.uniform(-0.07, 0.07), shade, 0.26)
    return low


def _sun(brush: Brush, at: Point, radius: float, tint: RGB, sky_tint: RGB) -> None:
    brush.glow(at, 3.4 * radius, mix(tint, CREAM, 0.35), 0.75)
    disc = ellipse(*at, radius)
    brush.wash(
        disc,
        (mix(tint, WHITE, 0.34), tint, mix(tint, PLUM, 0.06)),
        (at[0] - 0.6 * radius, at[1] - radius),
        (at[0] + 0.6 * radius, at[1] + radius),
    )


def _moon(brush: Brush, at: Point, radius: float, tint: RGB, sky_tint: RGB) -> None:
    (x, y), disc = at, ellipse(*at, radius)
    brush.glow(at, 2.6 * radius, mix(tint, WHITE, 0.4), 0.5)
    brush.canvas.drawPath(disc, paint(mix(sky_tint, tint, 0.35), 0.35))  # the dark side
    crescent = skia.Op(
        disc, ellipse(x + 0.62 * radius, y - 0.26 * radius, 0.92 * radius), skia.PathOp.kDifference_PathOp
    )
    brush.wash(crescent, (mix(tint, WHITE, 0.4), tint), (x - radius, y - radius), (x + 0.3 * radius, y + radius))


def _stars(brush: Brush, horizon: float) -> None:
    """Paint stars with four points, far from each other."""
    rng = brush.rng
    places: list[Point] = []
    for _ in range(200):
        at = rng.uniform(0.02, brush.aspect - 0.02), rng.uniform(0.03, horizon * 0.8)
        if len(places) < 17 and all(math.dist(at, other) > 0.1 for other in places):
            places.append(at)
    for x, y in places:
        size = rng.uniform(0.018, 0.034)
        brush.glow((x, y), 1.5 * size, CREAM, 0.45)
        turns = [(size if k % 2 == 0 else 0.3 * size, k * math.pi / 4) for k in range(8)]
        star = polygon([(x + r * math.sin(a), y - r * math.cos(a)) for r, a in turns])
        brush.canvas.drawPath(star, paint((1.0, 0.98, 0.86)))


def _rainbow(brush: Brush, horizon: float) -> None:
    radius = 0.47 * max(1.0, brush.aspect**0.5)
    for index, word in enumerate(("red", "orange", "yellow", "green", "blue", "purple")):
        ring = radius - 0.026 * index
        brush.canvas.drawCircle(
            brush.aspect / 2, horizon + 0.06, ring, pen(mix(colour(word), WHITE, 0.1), 0.030, 0.8, 0.003)
        )


def lights(brush: Brush, scene: Scene, horizon: float, sky_tint: RGB) -> Point | None:
    """Paint the light and return the position of sun or moon, which the sea reflects."""
    rng = brush.rng
    if scene.light == "rainbow":
        _rainbow(brush, horizon)
    if scene.light == "stars":
        _stars(brush, horizon)
    if scene.light not in ("sun", "moon"):
        return None
    offset = 0.28 * ((scene.light_side == "right") - (scene.light_side == "left"))
    x = brush.aspect * (0.5 + offset) + rng.uniform(-0.03, 0.03)
    # without a subject, the light is the subject: larger, and nearer to the horizon
    radius = rng.uniform(0.08, 0.10) if scene.subject else rng.uniform(0.115, 0.155)
    y = rng.uniform(0.17, 0.25) if scene.subject else rng.uniform(0.26, 0.38)
    tint = colour(scene.light_colour, rng)
    (_sun if scene.light == "sun" else _moon)(brush, (x, y), radius, tint, sky_tint)
    return x, y


def clouds(brush: Brush, scene: Scene) -> None:
    """Paint heaps of vapour, lit from above, with a flat and shaded underside."""
    rng = brush.rng
    gray = 0.0 if scene.weather == "clouds" else 0.3  # rain and snow fall from darker clouds
    light, shade = (dim(mix(tint, (0.62, 0.62, 0.74), gray), scene.night, 0.4) for tint in (WHITE, (0.84, 0.82, 0.94)))
    for index in range(rng.choice((2, 3))):
        size = rng.uniform(0.045, 0.07)
        x, y = (0.2 + 0.33 * index + rng.uniform(-0.1, 0.1)) * brush.aspect, rng.uniform(0.13, 0.31)
        puffs = [
            ((k - 2.5) * size * 0.85, -0.75 * size * math.sin((k + 0.5) * math.pi / 6), size * rng.uniform(0.7, 1.05))
            for k in range(6)
        ]
        heap = union([ellipse(x + dx, y + dy, radius) for dx, dy, radius in puffs])
        brush.canvas.save()
        brush.canvas.clipRect(skia.Rect(0, 0, brush.aspect, y + 0.45 * size))
        brush.wash(heap, (light, light, shade), (x, y - 1.6 * size), (x, y + 0.7 * size), 0.95)
        brush.canvas.clipPath(heap, True)
        for dx, dy, radius in puffs:  # each puff catches the light
            brush.glow((x + dx - 0.25 * radius, y + dy - 0.3 * radius), 1.1 * radius, mix(light, WHITE, 0.6), 0.5)
        brush.canvas.restore()


def falling(brush: Brush, scene: Scene) -> None:
    """Paint rain or snow over everything."""
    rng, canvas = brush.rng, brush.canvas
    if scene.weather == "rain":
        brush.band(0, 1, ((0.80, 0.84, 0.95),) * 2, (0.0, 0.22))
        for _ in range(int(55 * brush.aspect)):
            x, y, length = rng.uniform(0, brush.aspect), rng.uniform(0, 1), rng.uniform(0.03, 0.06)
            canvas.drawLine(x, y, x - 0.3 * length, y + length, pen((0.90, 0.95, 1.0), 0.006, 0.75))
    elif scene.weather == "snowfall":
        for _ in range(int(46 * brush.aspect)):
            size = rng.uniform(0.009, 0.015)
            canvas.drawCircle(rng.uniform(0, brush.aspect), rng.uniform(0, 1), size, paint(WHITE, 0.9, 0.2 * size))


def _sea(brush: Brush, horizon: float, tint: RGB, sky_tint: RGB, light: tuple[Point, RGB] | None) -> None:
    rng, depth = brush.rng, 1 - horizon
    brush.band(horizon, 1.0, (mix(tint, sky_tint, 0.6), mix(tint, WHITE, 0.10), tint, mix(tint, PLUM, 0.16)))
    if light:
        (x, _), glow = light
        brush.glow((x, horizon), 0.34, glow, 0.4)
    rows = 26
    for row in range(rows):  # waves are small and close together near the horizon
        near = ((row + rng.random()) / rows) ** 1.6
        y = horizon + 0.01 + depth * near
        for _ in range(3):
            shade = mix(tint, WHITE, rng.uniform(0.25, 0.6)) if rng.random() < 0.55 else mix(tint, PLUM, 0.22)
            length = (0.03 + 0.11 * near) * rng.uniform(0.6, 1.4)
            brush.dab((rng.uniform(0, brush.aspect), y), length, 0.0025 + 0.011 * near, 0.0, shade, 0.34)
            crest = rng.uniform(0, brush.aspect)
            brush.dab((crest, y + 0.006), 0.7 * length, 0.0012 + 0.0016 * near, 0.0, mix(tint, WHITE, 0.7), 0.5)
    if light:
        (x, _), glow = light
        for index in range(13):  # the light's path over the water
            near = (index / 12) ** 1.3
            width = (0.055 + 0.055 * near) * rng.uniform(0.7, 1.2)
            at = x + rng.uniform(-0.02, 0.02), horizon + 0.012 + 0.9 * depth * near
            brush.dab(at, width, 0.005 + 0.006 * near, 0.0, mix(glow, WHITE, 0.25), 0.72 - 0.25 * near)


def _ridge(brush: Brush, shape: Shape, tint: RGB, foot: RGB, depth: float, dabs: int, steep: float) -> None:
    """Paint everything below a line, lit along its edge, and fading into `foot` at `depth` below its mean."""
    aspect, rng = brush.aspect, brush.rng
    line = [(aspect * k / 40, shape(k / 40)) for k in range(41)]
    top, mean = min(y for _, y in line), sum(y for _, y in line) / 41
    path = polygon([(0.0, 1.0), *line, (aspect, 1.0)])
    brush.wash(path, (mix(tint, WHITE, 0.24), tint, foot), (0, top), (0, mean + depth))
    brush.canvas.save()
    brush.canvas.clipPath(path, True)
    for _ in range(dabs):
        place = rng.random()
        down = rng.random() ** 1.5 * 1.2 * depth
        slope = math.atan2(shape(place + 0.02) - shape(place - 0.02), 0.04 * aspect)
        shade = mix(
            mix(tint, WHITE, 0.34), mix(tint, PLUM, 0.22), min(1.0, max(0.0, down / depth + rng.uniform(-0.35, 0.35)))
        )
        length = rng.uniform(0.03, 0.07)
        brush.dab(
            (aspect * place, shape(place) + 0.012 + down),
            length,
            0.22 * length,
            slope + steep * rng.uniform(-1, 1),
            shade,
            0.3,
        )
    brush.canvas.restore()


def _waves(phase: float, level: float, height: float, length: float) -> Shape:
    return lambda place: (
        level - height * (math.sin(phase + length * place) + 0.35 * math.sin(2.3 * phase + 2.1 * length * place))
    )


def _hills(brush: Brush, horizon: float, tint: RGB, sky_tint: RGB) -> None:
    rng = brush.rng
    for layer in range(3):
        haze = (0.55, 0.22, 0.0)[layer]
        shade = mix(tint, sky_tint, haze)
        shape = _waves(rng.uniform(0, 6), horizon - 0.02 + 0.115 * layer, 0.05 - 0.008 * layer, rng.uniform(4, 6.5))
        foot = mix(shade, sky_tint, 0.3) if layer < 2 else mix(tint, PLUM, 0.22)
        _ridge(brush, shape, shade, foot, 0.12 + 0.1 * layer, 26, 0.15)
    _tufts(brush, horizon + 0.25, tint, 30)


def _mountains(brush: Brush, horizon: float, tint: RGB, sky_tint: RGB) -> None:
    rng = brush.rng
    for layer in range(2):
        shade, x = mix(tint, sky_tint, (0.45, 0.14)[layer]), -0.18 + 0.12 * layer
        base = horizon + 0.06 + 0.055 * layer
        while x < brush.aspect + 0.05:
            width = rng.uniform(0.34, 0.46)
            height = width * (0.86, 0.6)[layer] * rng.uniform(0.9, 1.1)
            _peak(brush, (x + rng.uniform(0.45, 0.55) * width, base - height), (x, x + width), base, shade, sky_tint)
            x += 0.62 * width
    haze = mix(tint, sky_tint, 0.5)
    brush.band(horizon + 0.10, horizon + 0.2, (haze, haze))
    shape = _waves(rng.uniform(0, 6), horizon + 0.13, 0.022, 4.0)
    _ridge(brush, shape, mix(tint, WHITE, 0.06), mix(tint, PLUM, 0.18), 0.25, 24, 0.2)


def _peak(brush: Brush, top: Point, feet: tuple[float, float], base: float, tint: RGB, sky_tint: RGB) -> None:
    """Paint a mountain with a lit and a shaded face; its foot is in haze, its summit in snow."""
    (x, y), (left, right) = top, feet
    haze, middle = mix(tint, sky_tint, 0.5), x + 0.10 * (right - left)
    lit = polygon([(x, y), (left, base), (middle, base)])
    dark = polygon([(x, y), (middle, base), (right, base)])
    brush.wash(lit, (mix(tint, WHITE, 0.30), mix(tint, WHITE, 0.12), haze), (0, y), (0, base))
    brush.wash(dark, (mix(tint, PLUM, 0.34), mix(tint, PLUM, 0.16), haze), (0, y), (0, base))
    drop, share = base - y, 0.27
    snow = [(x, y), (x + (left - x) * share, y + drop * share)]
    for k in range(1, 6):  # a ragged edge, not a straight one
        across = k / 6
        snow.append(
            (x + (left - x) * share + (right - left) * share * across, y + drop * share * (1.25 if k % 2 else 0.85))
        )
    snow.append((x + (right - x) * share, y + drop * share))
    brush.wash(polygon(snow), (WHITE, mix(WHITE, tint, 0.3)), (x - 0.05, y), (x + 0.06, y + drop * share))


def _tufts(brush: Brush, top: float, tint: RGB, number: int) -> None:
    """Paint grass that grows with nearness, in tufts."""
    rng = brush.rng
    for _ in range(number):
        y = top + (1.02 - top) * rng.random()
        x, height = rng.uniform(0, brush.aspect), 0.015 + 0.09 * max(0.0, y - top)
        shade = mix(tint, WHITE, rng.uniform(0.2, 0.4)) if rng.random() < 0.5 else mix(tint, PLUM, 0.24)
        for lean in (-0.35, -0.1, 0.2):
            blade = skia.Path()
            blade.moveTo(x, y)
            blade.quadTo(x + 0.2 * lean * height, y - 0.6 * height, x + lean * height, y - height)
            brush.canvas.drawPath(blade, pen(shade, 0.004 + 0.03 * height, 0.55))


def _meadow(brush: Brush, horizon: float, tint: RGB, sky_tint: RGB) -> None:
    rng, depth = brush.rng, 1 - horizon
    brush.band(horizon, 1.0, (mix(tint, sky_tint, 0.5), mix(tint, WHITE, 0.16), tint, mix(tint, PLUM, 0.16)))
    blossom = mix(WHITE, colour(rng.choice(("pink", "yellow", "white", "purple"))), 0.5)
    for row in range(9):  # drifts of flowers, seen from the side
        near = ((row + 0.5) / 9) ** 1.4
        for _ in range(3):
            at = rng.uniform(0, brush.aspect), horizon + 0.02 + 0.85 * depth * near
            length = (0.06 + 0.12 * near) * rng.uniform(0.6, 1.2)
            shade = blossom if rng.random() < 0.4 else mix(tint, rng.choice((WHITE, PLUM)), 0.22)
            brush.dab(at, length, 0.006 + 0.018 * near, rng.uniform(-0.04, 0.04), shade, 0.45)
    _tufts(brush, horizon + 0.05, tint, 95)


def _dunes(brush: Brush, horizon: float, tint: RGB, sky_tint: RGB, snow: bool) -> None:
    rng, shaded = brush.rng, (0.66, 0.72, 0.92) if snow else PLUM
    for layer in range(4):
        shade = mix(tint, sky_tint, (0.5, 0.28, 0.12, 0.0)[layer])
        shape = _waves(rng.uniform(0, 6), horizon + 0.015 + 0.085 * layer, 0.022 + 0.004 * layer, rng.uniform(3, 5))
        _ridge(brush, shape, shade, mix(shade, shaded, 0.38 if snow else 0.30), 0.11 + 0.06 * layer, 7, 0.05)
    for row in range(10):  # ripples of the wind
        y = horizon + 0.28 + 0.01 * row * (1 + 0.15 * row)
        at, length = (rng.uniform(0, brush.aspect), y), rng.uniform(0.06, 0.16)
        brush.dab(at, length, 0.0028, rng.uniform(-0.06, 0.06), mix(tint, rng.choice((WHITE, shaded)), 0.3), 0.5)


def ground(brush: Brush, scene: Scene, horizon: float, sky_tint: RGB, light: Point | None) -> None:
    """Paint everything below the horizon, and the hills that rise above it."""
    tint = airy(dim(colour(scene.ground_colour, brush.rng), scene.night, 0.45), scene.night)
    if scene.ground == "sea":
        glow = mix(colour(scene.light_colour), WHITE, 0.15) if light else WHITE
        _sea(brush, horizon, tint, sky_tint, (light, glow) if light else None)
    elif scene.ground == "meadow":
        _meadow(brush, horizon, tint, sky_tint)
    elif scene.ground == "hills":
        _hills(brush, horizon, tint, sky_tint)
    elif scene.ground == "mountains":
        _mountains(brush, horizon, tint, sky_tint)
    else:
        _dunes(brush, horizon, tint, sky_tint, scene.ground == "snow")
