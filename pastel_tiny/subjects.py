"""The things that stand, swim or float in a scene, drawn around their foot at (0, 0), a third of the height tall."""

import math
from collections.abc import Callable

import skia

from pastel_tiny.brush import Brush, ellipse, paint, pen, polygon
from pastel_tiny.palette import CREAM, PLUM, RGB, WHITE, WOOD, colour, mix


def house(brush: Brush, tint: RGB) -> None:
    """Draw walls in the named colour, a darker roof, two lit windows; bricks and tiles at the larger sizes."""
    canvas = brush.canvas
    brush.form(polygon([(-0.14, 0), (-0.14, -0.19), (0.14, -0.19), (0.14, 0)]), tint)
    for row in range(7):
        for column in range(5):
            x = -0.13 + 0.056 * column + 0.028 * (row % 2)
            canvas.drawLine(
                x, -0.175 + 0.026 * row, x + 0.03, -0.175 + 0.026 * row, pen(mix(tint, PLUM, 0.4), 0.0025, 0.7)
            )
    brush.form(polygon([(-0.18, -0.185), (0, -0.33), (0.18, -0.185)]), mix(tint, PLUM, 0.42))
    brush.form(polygon([(-0.035, 0), (-0.035, -0.11), (0.035, -0.11), (0.035, 0)]), WOOD, 4, outline=0.006)
    for x in (-0.09, 0.09):
        canvas.drawRect(skia.Rect(x - 0.03, -0.155, x + 0.03, -0.092), paint((1.0, 0.94, 0.66)))
        canvas.drawRect(skia.Rect(x - 0.03, -0.155, x + 0.03, -0.092), pen(WOOD, 0.006))
        canvas.drawLine(x, -0.155, x, -0.092, pen(WOOD, 0.004))


def tree(brush: Brush, tint: RGB) -> None:
    """Draw a round crown in the named colour; single leaves at the larger sizes."""
    brush.form(polygon([(-0.034, 0), (-0.02, -0.18), (0.02, -0.18), (0.034, 0)]), WOOD, 10)
    crown = skia.Path()
    for x, y, radius in ((-0.09, -0.2, 0.085), (0.09, -0.2, 0.085), (0, -0.28, 0.105), (0, -0.19, 0.09)):
        crown = skia.Op(crown, ellipse(x, y, radius), skia.PathOp.kUnion_PathOp)
    brush.form(crown, tint, 60)
    for _ in range(26):
        x, y = brush.rng.uniform(-0.13, 0.13), brush.rng.uniform(-0.34, -0.13)
        leaf = mix(tint, brush.rng.choice((WHITE, PLUM)), 0.35)
        if crown.contains(x, y):
            brush.canvas.drawPath(ellipse(x, y, 0.009, 0.005), pen(leaf, 0.003, 0.9))


def boat(brush: Brush, tint: RGB) -> None:
    """Draw a hull in the named colour under cream sails."""
    brush.form(polygon([(-0.18, -0.085), (0.18, -0.085), (0.12, 0), (-0.12, 0)]), tint, 26, angle=0.1)
    for y in (-0.055, -0.028):
        brush.canvas.drawLine(-0.14, y, 0.14, y, pen(mix(tint, PLUM, 0.45), 0.0028, 0.8))
    brush.form(polygon([(-0.007, -0.33), (0.007, -0.33), (0.007, -0.085), (-0.007, -0.085)]), WOOD, 4, outline=0.004)
    brush.form(polygon([(0.016, -0.32), (0.016, -0.1), (0.14, -0.1)]), CREAM, 10, angle=1.2)
    brush.form(polygon([(-0.016, -0.28), (-0.016, -0.1), (-0.11, -0.1)]), CREAM, 8, angle=1.9)


def balloon(brush: Brush, tint: RGB) -> None:
    """Draw a hot-air balloon with lighter gores and a wicker basket."""
    for side in (-1, 1):
        brush.canvas.drawLine(side * 0.08, -0.06, side * 0.03, 0.08, pen(WOOD, 0.006))
    envelope = ellipse(0, -0.14, 0.135, 0.15)
    brush.form(envelope, tint, 40)
    for width in (0.0, 0.07):
        brush.canvas.drawPath(ellipse(0, -0.14, width + 0.001, 0.148), pen(mix(tint, WHITE, 0.6), 0.010, 0.85))
    brush.canvas.drawPath(envelope, pen(mix(tint, PLUM, 0.62), 0.010))
    brush.form(polygon([(-0.038, 0.075), (0.038, 0.075), (0.032, 0.13), (-0.032, 0.13)]), WOOD, 5, outline=0.006)
    for k in range(4):
        brush.canvas.drawLine(-0.032, 0.085 + 0.011 * k, 0.032, 0.085 + 0.011 * k, pen(CREAM, 0.0025, 0.7))


def heart(brush: Brush, tint: RGB) -> None:
    """Draw a floating heart with a shine."""
    path = skia.Path()
    path.moveTo(0, 0.1)
    path.cubicTo(-0.28, -0.08, -0.13, -0.3, 0, -0.15)
    path.cubicTo(0.13, -0.3, 0.28, -0.08, 0, 0.1)
    path.close()
    brush.form(path, tint, 44)
    brush.canvas.drawPath(ellipse(-0.075, -0.14, 0.024, 0.03), paint(WHITE, 0.8))
    for k in range(7):  # a string of pearls that is barely visible in small pictures
        brush.canvas.drawCircle(
            -0.09 + 0.03 * k, -0.03 + 0.012 * math.cos(k * 2.1), 0.006, pen(mix(tint, WHITE, 0.7), 0.003)
        )


def flower(brush: Brush, tint: RGB) -> None:
    """Draw six petals in the named colour on a green stem."""
    leaf = (0.42, 0.68, 0.44)
    brush.canvas.drawLine(0, 0, 0, -0.2, pen(mix(leaf, PLUM, 0.3), 0.02))
    for side in (-1, 1):
        brush.form(ellipse(side * 0.055, -0.06, 0.055, 0.022), leaf, 6, angle=0.2, outline=0.006)
    for k in range(6):
        angle = k * math.pi / 3
        brush.form(ellipse(0.085 * math.cos(angle), -0.24 + 0.085 * math.sin(angle), 0.055), tint, 9)
        for spread in (-0.35, 0.0, 0.35):
            dx, dy = math.cos(angle + spread), math.sin(angle + spread)
            brush.canvas.drawLine(0.05 * dx, -0.24 + 0.05 * dy, 0.11 * dx, -0.24 + 0.11 * dy,
                                  pen(mix(tint, PLUM, 0.4), 0.0028, 0.7))  # fmt: skip
    brush.form(
        ellipse(0, -0.24, 0.045), (1.0, 0.82, 0.36) if tint[2] < 0.75 or tint[0] < 0.98 else (0.72, 0.5, 0.34), 6
    )


def snowman(brush: Brush, tint: RGB) -> None:
    """Draw three balls in the named colour, a hat, a scarf and a carrot; the embedded model is never trained on one."""
    for side in (-1, 1):
        brush.canvas.drawLine(side * 0.05, -0.18, side * 0.15, -0.24, pen(WOOD, 0.012))
    for y, radius in ((-0.075, 0.095), (-0.185, 0.072), (-0.27, 0.056)):
        brush.form(ellipse(0, y, radius, 0.9 * radius), tint, 14)
    brush.form(polygon([(-0.065, -0.24), (0.065, -0.24), (0.06, -0.215), (-0.06, -0.215)]), colour("red"), 6)
    brush.form(polygon([(-0.045, -0.31), (-0.04, -0.39), (0.04, -0.39), (0.045, -0.31)]), PLUM, 6)
    brush.canvas.drawLine(-0.075, -0.31, 0.075, -0.31, pen(PLUM, 0.018))
    brush.form(polygon([(0, -0.285), (0.075, -0.265), (0, -0.255)]), colour("orange"), 3, outline=0.006)
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
