"""Paint a scene at any size: it has the same composition at 128 px and at 512 px, only with more detail."""

import random

import numpy as np
from numpy.typing import NDArray

from pastel_tiny import backdrop
from pastel_tiny.brush import Brush
from pastel_tiny.palette import colour
from pastel_tiny.scenes import Scene
from pastel_tiny.subjects import FLOATING, PAINTERS


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
    offset = 0.25 * ((scene.subject_side == "right") - (scene.subject_side == "left"))
    x = brush.aspect * (0.5 + offset) + rng.uniform(-0.03, 0.03)
    y = (
        horizon - 0.1 + rng.uniform(-0.04, 0.04)
        if scene.subject in FLOATING
        else min(0.96, horizon + rng.uniform(0.2, 0.3))
    )
    tint = backdrop.dim(colour(scene.subject_colour, rng), scene.night, 0.12)
    scale = rng.uniform(1.4, 1.65) * min(1.0, brush.aspect + 0.1)
    canvas.save()
    canvas.translate(x, y)
    canvas.scale(scale, scale)
    PAINTERS[scene.subject](brush, tint)
    canvas.restore()
