"""The things that stand, swim or float in a scene, drawn around their foot at (0, 0), a third of the height tall."""

import math
from collections.abc import Callable

import skia

from pastel_tiny.brush import Brush, curve, ellipse, paint, pen, polygon, union
from pastel_tiny.palette import CREAM, PLUM, RGB, SKIN, WHITE, WOOD, colour, mix

LAMP: RGB = (1.0, 0.93, 0.66)


def house(brush: Brush, tint: RGB) -> None:
    """Draw walls in the named colour, a darker roof, a chimney and lit windows; boards at the larger sizes."""
    canvas, roof = brush.canvas, mix(tint, PLUM, 0.48)
    brush.form(polygon([(0.06, -0.2), (0.06, -0.33), (0.105, -0.33), (0.105, -0.2)]), mix(roof, WHITE, 0.12), 4)
    brush.form(polygon([(-0.14, 0), (-0.14, -0.19), (0.14, -0.19), (0.14, 0)]), tint, 10, lambda *_: 0.0, 0.04)
    for row in range(8):
        canvas.drawLine(-0.138, -0.02 - 0.021 * row, 0.138, -0.02 - 0.021 * row, pen(mix(tint, PLUM, 0.3), 0.0022, 0.5))
    gable = polygon([(-0.18, -0.18), (0, -0.325), (0.18, -0.18)])
    brush.form(gable, roof, 22, lambda across, _: -0.67 if across < 0.5 else 0.67, 0.03)
    brush.form(polygon([(-0.034, 0), (-0.034, -0.105), (0.034, -0.105), (0.034, 0)]), WOOD, 4, lambda *_: 1.57)
    for x in (-0.088, 0.088):
        pane = polygon([(x - 0.03, -0.155), (x + 0.03, -0.155), (x + 0.03, -0.09), (x - 0.03, -0.09)])
        brush.glow((x, -0.122), 0.075, LAMP, 0.5)
        brush.wash(pane, (mix(LAMP, WHITE, 0.4), LAMP), (x - 0.03, -0.155), (x + 0.03, -0.09))
        for start, end in (((x, -0.155), (x, -0.09)), ((x - 0.03, -0.122), (x + 0.03, -0.122))):
            canvas.drawLine(*start, *end, pen(mix(WOOD, tint, 0.3), 0.004, 0.9))


def tree(brush: Brush, tint: RGB) -> None:
    """Draw a round crown in the named colour; single leaves at the larger sizes."""
    rng = brush.rng
    trunk = curve(
        (-0.04, 0), ((-0.018, -0.08), (-0.018, -0.19)), ((0, -0.2), (0.018, -0.19)), ((0.018, -0.08), (0.04, 0))
    )
    brush.form(trunk, WOOD, 8, lambda *_: 1.5)
    heaps = ((-0.092, -0.195, 0.08), (0.092, -0.195, 0.08), (0, -0.265, 0.11), (0, -0.185, 0.09))
    crown = union([ellipse(*heap) for heap in heaps])
    brush.form(crown, tint, 30, size=0.035)
    brush.canvas.save()
    brush.canvas.clipPath(crown, True)
    for x, y, radius in heaps:  # each heap of leaves is lit from the upper left
        brush.glow((x - 0.35 * radius, y - 0.4 * radius), radius, mix(tint, WHITE, 0.5), 0.5)
    for _ in range(60):
        x, y = rng.uniform(-0.17, 0.17), rng.uniform(-0.37, -0.11)
        lit = 0.5 - 2.2 * x - 2.6 * (y + 0.22) + rng.uniform(-0.4, 0.4)
        leaf = mix(mix(tint, PLUM, 0.32), mix(tint, WHITE, 0.42), min(1.0, max(0.0, lit)))
        brush.dab((x, y), 0.012, 0.006, rng.uniform(0, 3.1), leaf, 0.6)
    brush.canvas.restore()


def boat(brush: Brush, tint: RGB) -> None:
    """Draw a hull in the named colour under cream sails."""
    brush.canvas.drawLine(0, -0.33, 0, -0.08, pen(WOOD, 0.011))
    main = curve(
        (0.014, -0.325),
        ((0.10, -0.2), (0.145, -0.105)),
        ((0.08, -0.09), (0.014, -0.105)),
        ((0.03, -0.2), (0.014, -0.325)),
    )
    jib = curve(
        (-0.014, -0.285),
        ((-0.09, -0.2), (-0.115, -0.105)),
        ((-0.06, -0.095), (-0.014, -0.105)),
        ((-0.025, -0.2), (-0.014, -0.285)),
    )
    brush.form(main, mix(CREAM, WHITE, 0.3), 8, lambda *_: 1.2, 0.04, 0.7)
    brush.form(jib, mix(CREAM, tint, 0.12), 6, lambda *_: 1.9, 0.035, 0.7)
    hull = curve(
        (-0.19, -0.09),
        ((0, -0.065), (0.19, -0.09)),
        ((0.15, 0.0), (0.1, 0.0)),
        ((0, 0.012), (-0.1, 0.0)),
        ((-0.16, -0.01), (-0.19, -0.09)),
    )
    brush.form(hull, tint, 16, lambda *_: 0.0, 0.04)
    rim = skia.Path()
    rim.moveTo(-0.19, -0.09)
    rim.quadTo(0, -0.065, 0.19, -0.09)
    brush.canvas.drawPath(rim, pen(mix(tint, WHITE, 0.55), 0.008, 0.9))
    for k in (0.3, 0.6):
        brush.canvas.drawLine(
            -0.165 + 0.06 * k,
            -0.08 + 0.07 * k,
            0.165 - 0.06 * k,
            -0.08 + 0.07 * k,
            pen(mix(tint, PLUM, 0.4), 0.0026, 0.6),
        )


def balloon(brush: Brush, tint: RGB) -> None:
    """Draw a hot-air balloon with lighter gores and a wicker basket."""
    for side in (-1, 1):
        brush.canvas.drawLine(side * 0.075, -0.04, side * 0.03, 0.085, pen(WOOD, 0.005))
    envelope = curve(
        (0, -0.30), ((0.145, -0.30), (0.145, -0.155)), ((0.145, -0.06), (0.045, 0.022)), ((0, 0.034), (-0.045, 0.022)),
        ((-0.145, -0.06), (-0.145, -0.155)), ((-0.145, -0.30), (0, -0.30)),
    )  # fmt: skip
    brush.form(envelope, tint, 8, size=0.04)
    brush.canvas.save()
    brush.canvas.clipPath(envelope, True)
    for width in (0.105, 0.045):
        gore = ellipse(0, -0.14, width, 0.175)
        brush.canvas.drawPath(gore, pen(mix(tint, WHITE, 0.55), 0.016, 0.7))
    brush.glow((-0.055, -0.21), 0.12, WHITE, 0.45)
    brush.canvas.restore()
    basket = polygon([(-0.038, 0.08), (0.038, 0.08), (0.031, 0.135), (-0.031, 0.135)])
    brush.form(basket, WOOD, 4, lambda *_: 0.0)
    for k in range(4):
        brush.canvas.drawLine(-0.034, 0.09 + 0.011 * k, 0.034, 0.09 + 0.011 * k, pen(CREAM, 0.0025, 0.5))


def heart(brush: Brush, tint: RGB) -> None:
    """Draw a floating heart with a shine."""
    path = skia.Path()
    path.moveTo(0, 0.1)
    path.cubicTo(-0.28, -0.08, -0.14, -0.31, 0, -0.155)
    path.cubicTo(0.14, -0.31, 0.28, -0.08, 0, 0.1)
    path.close()
    brush.glow((0, -0.08), 0.26, mix(tint, WHITE, 0.6), 0.45)
    brush.form(path, tint, 12, size=0.035)
    brush.canvas.save()
    brush.canvas.clipPath(path, True)
    brush.glow((-0.075, -0.15), 0.10, WHITE, 0.75)
    brush.canvas.restore()


def flower(brush: Brush, tint: RGB) -> None:
    """Draw six petals in the named colour on a green stem."""
    leaf = (0.45, 0.68, 0.47)
    stem = skia.Path()
    stem.moveTo(0.012, 0)
    stem.quadTo(-0.012, -0.1, 0, -0.2)
    brush.canvas.drawPath(stem, pen(mix(leaf, PLUM, 0.2), 0.016))
    for side in (-1, 1):
        blade = curve((0, -0.03), ((side * 0.06, -0.09), (side * 0.115, -0.085)), ((side * 0.08, -0.03), (0, -0.03)))
        brush.form(blade, leaf, 4, lambda *_: 0.0)
    for k in range(6):
        angle = k * math.pi / 3 + 0.3
        x, y = 0.08 * math.cos(angle), -0.24 + 0.08 * math.sin(angle)
        petal = ellipse(x, y, 0.06)
        brush.wash(
            petal,
            (mix(tint, PLUM, 0.25), tint, mix(tint, WHITE, 0.45)),
            (0, -0.24),
            (1.7 * x, -0.24 + 1.7 * (y + 0.24)),
        )
        for spread in (-0.3, 0.0, 0.3):
            dx, dy = math.cos(angle + spread), math.sin(angle + spread)
            brush.canvas.drawLine(
                0.05 * dx, -0.24 + 0.05 * dy, 0.11 * dx, -0.24 + 0.11 * dy, pen(mix(tint, PLUM, 0.3), 0.0026, 0.5)
            )
    centre = (0.72, 0.5, 0.34) if tint[0] > 0.95 and tint[2] < 0.75 else (1.0, 0.84, 0.42)
    brush.form(ellipse(0, -0.24, 0.042), centre, 4)


def girl(brush: Brush, tint: RGB, hair: RGB) -> None:
    """Draw a small girl from behind, in a dress of the named colour, with a ribbon in her hair."""
    canvas = brush.canvas
    for side in (-1, 1):
        canvas.drawLine(side * 0.026, -0.09, side * 0.024, -0.018, pen(SKIN, 0.026))
        brush.form(ellipse(side * 0.026, -0.009, 0.022, 0.014), mix(tint, PLUM, 0.5), 0)
        arm = skia.Path()
        arm.moveTo(side * 0.045, -0.19)
        arm.quadTo(side * 0.085, -0.16, side * 0.098, -0.105)
        canvas.drawPath(arm, pen(mix(SKIN, PLUM, 0.05), 0.022))
    dress = curve(
        (-0.045, -0.215), ((0, -0.225), (0.045, -0.215)), ((0.05, -0.13), (0.115, -0.062)),
        ((0.06, -0.04), (0, -0.046)), ((-0.06, -0.04), (-0.115, -0.062)), ((-0.05, -0.13), (-0.045, -0.215)),
    )  # fmt: skip
    brush.form(dress, tint, 8, lambda across, _: 1.57 + 0.9 * (0.5 - across), 0.03)
    for fold in (-0.6, -0.2, 0.2, 0.6):
        canvas.drawLine(0.45 * fold * 0.1, -0.14, fold * 0.13, -0.06, pen(mix(tint, PLUM, 0.3), 0.005, 0.5))
    for side in (-1, 1):
        brush.form(ellipse(side * 0.052, -0.195, 0.027, 0.022), tint, 0)
    flow = curve(
        (-0.078, -0.29), ((-0.08, -0.37), (0, -0.37)), ((0.08, -0.37), (0.078, -0.29)),
        ((0.088, -0.22), (0.072, -0.155)), ((0.045, -0.172), (0.025, -0.148)), ((0, -0.168), (-0.025, -0.148)),
        ((-0.045, -0.172), (-0.072, -0.155)), ((-0.088, -0.22), (-0.078, -0.29)),
    )  # fmt: skip
    brush.form(flow, hair, 10, lambda across, _: 1.57 + 0.5 * (across - 0.5), 0.035, 0.9)
    canvas.save()
    canvas.clipPath(flow, True)
    for x in (-0.045, -0.015, 0.018, 0.048):
        canvas.drawLine(0.7 * x, -0.35, 1.2 * x, -0.16, pen(mix(hair, PLUM, 0.35), 0.003, 0.45))
    brush.glow((-0.03, -0.325), 0.06, mix(hair, WHITE, 0.7), 0.6)
    canvas.restore()
    for side in (-1, 1):
        loop = curve((0, -0.305), ((side * 0.03, -0.345), (side * 0.052, -0.325)), ((side * 0.06, -0.29), (0, -0.305)))
        brush.form(loop, mix(tint, WHITE, 0.12), 0)
    canvas.drawCircle(0, -0.306, 0.011, paint(mix(tint, PLUM, 0.2)))


def snowman(brush: Brush, tint: RGB) -> None:
    """Draw three balls in the named colour, a hat, a scarf and a carrot; the embedded model is never trained on one."""
    for side in (-1, 1):
        brush.canvas.drawLine(side * 0.05, -0.18, side * 0.15, -0.24, pen(WOOD, 0.012))
    for y, radius in ((-0.075, 0.095), (-0.185, 0.072), (-0.27, 0.056)):
        brush.form(ellipse(0, y, radius, 0.9 * radius), tint, 8)
    brush.form(polygon([(-0.065, -0.24), (0.065, -0.24), (0.06, -0.215), (-0.06, -0.215)]), colour("red"), 4)
    brush.form(polygon([(-0.045, -0.31), (-0.04, -0.39), (0.04, -0.39), (0.045, -0.31)]), PLUM, 4)
    brush.canvas.drawLine(-0.075, -0.31, 0.075, -0.31, pen(PLUM, 0.018))
    brush.form(polygon([(0, -0.285), (0.075, -0.265), (0, -0.255)]), colour("orange"), 2)
    for x, y in ((-0.022, -0.287), (0.022, -0.287), (0, -0.18), (0, -0.15), (0, -0.09)):
        brush.canvas.drawPath(ellipse(x, y, 0.009), paint(PLUM))


FLOATING = ("balloon", "heart")
PAINTERS: dict[str, Callable[[Brush, RGB], None]] = {
    "house": house,
    "tree": tree,
    "boat": boat,
    "balloon": balloon,
    "heart": heart,
    "flower": flower,
    "snowman": snowman,
}
"""Everything but the girl, who has two colours."""
