"""Paint a scene at any size: it has the same composition at 160 px and at 640 px, only with more detail."""

import random

import numpy as np
from numpy.typing import NDArray

from pastel_tiny import backdrop
from pastel_tiny.brush import Brush, ellipse
from pastel_tiny.palette import PLUM, RGB, SAND, colour, mix
from pastel_tiny.scenes import Scene
from pastel_tiny.subjects import FLOATING, PAINTERS, girl


def render(scene: Scene, width: int, height: int) -> NDArray[np.uint8]:
    """Return the picture of a scene as height x width x 3 bytes."""
    brush, horizon = _without_subject(scene, width, height)
    if scene.subject:
        _subject(brush, scene, horizon)
    backdrop.falling(brush, scene)
    return brush.pixels()


def nearness(scene: Scene, width: int, height: int) -> NDArray[np.uint8]:
    """Return how near everything in a scene is, as height x width bytes: sky 0, ground up to 160, subject 255."""
    brush, horizon = _without_subject(scene, width, height)
    empty, rows = brush.pixels(), (np.arange(height) + 0.5) / height
    ground = 60 + 100 * (rows - horizon) / (1 - horizon)
    near = np.repeat(np.where(rows > horizon, ground, 0)[:, None], width, 1).astype(np.uint8)
    if scene.subject:
        brush.solid = True
        _subject(brush, scene, horizon)
        near[(brush.pixels() != empty).any(-1)] = 255
    return near


def _without_subject(scene: Scene, width: int, height: int) -> tuple[Brush, float]:
    """Return the picture without its subject and without what falls, and the height of its horizon."""
    brush = Brush(width, height, random.Random(scene.seed * 2 + 1))
    horizon = brush.rng.uniform(0.56, 0.68)
    sky_tint = backdrop.sky(brush, scene, horizon)
    light = backdrop.lights(brush, scene, horizon, sky_tint)
    if scene.weather:
        backdrop.clouds(brush, scene)
    backdrop.ground(brush, scene, horizon, sky_tint, light)
    return brush, horizon


def _subject(brush: Brush, scene: Scene, horizon: float) -> None:
    rng, canvas = brush.rng, brush.canvas
    offset = 0.2 * ((scene.subject_side == "right") - (scene.subject_side == "left"))
    x = brush.aspect * (0.5 + offset) + rng.uniform(-0.03, 0.03)
    floats = scene.subject in FLOATING
    y = horizon - 0.08 + rng.uniform(-0.04, 0.04) if floats else min(0.95, horizon + rng.uniform(0.2, 0.28))
    tint = backdrop.dim(colour(scene.subject_colour, rng), scene.night, 0.12)
    scale = rng.uniform(1.3, 1.5) * min(1.0, brush.aspect + 0.1)
    canvas.save()
    canvas.translate(x, y)
    canvas.scale(scale, scale)
    if not floats:
        _footing(brush, scene, tint)
    if scene.subject == "girl":
        girl(brush, tint, backdrop.dim(colour(scene.hair, rng), scene.night, 0.12))
    else:
        PAINTERS[scene.subject](brush, tint)
    canvas.restore()


def _footing(brush: Brush, scene: Scene, tint: RGB) -> None:
    """Paint what a thing stands on: its shadow; on the sea its mirror image, or an islet if it cannot swim."""
    dark = backdrop.dim(mix(colour(scene.ground_colour), PLUM, 0.45), scene.night, 0.45)
    if scene.ground != "sea":
        brush.shadow(0.03, 0.0, 0.17, 0.022, dark, 0.55)
    elif scene.subject == "boat":
        for k in range(5):
            width = 0.15 - 0.018 * k
            brush.dab(
                (brush.rng.uniform(-0.012, 0.012), 0.012 + 0.017 * k), width, 0.007, 0.0, mix(tint, dark, 0.3), 0.5
            )
    else:
        islet = backdrop.dim(SAND, scene.night, 0.4)
        brush.dab((0, 0.012), 0.25, 0.035, 0.0, mix(islet, dark, 0.45), 0.6)
        brush.form(ellipse(0, 0.002, 0.23, 0.03), islet, 6, lambda *_: 0.0, 0.05, 0.7)
        brush.shadow(0.03, 0.0, 0.13, 0.014, mix(islet, PLUM, 0.4), 0.6)
