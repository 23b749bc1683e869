"""Scenes: attributes drawn from a seed, and the combinations that are never trained on."""

import random
from dataclasses import dataclass

SKY_COLOURS = ("blue", "pink", "purple", "orange", "mint", "yellow")
SKY_WEIGHTS = (0.24, 0.2, 0.16, 0.16, 0.12, 0.12)
NIGHT_SKY_WEIGHTS = (0.4, 0.15, 0.35, 0, 0.1, 0)  # a dark orange or yellow is brown or olive
GROUND_COLOURS: dict[str, tuple[str, ...]] = {
    "sea": ("blue", "mint", "purple", "pink"),
    "hills": ("green", "purple", "orange", "pink"),
    "meadow": ("green", "yellow", "mint"),
    "desert": ("orange", "yellow", "brown"),
    "snow": ("white",),
    "mountains": ("purple", "blue", "brown", "green"),
}
GROUND_WEIGHTS = (0.26, 0.18, 0.17, 0.13, 0.11, 0.15)
LIGHTS = ("sun", "moon", "stars", "rainbow", "")
LIGHT_COLOURS = ("yellow", "orange", "red", "pink", "white", "blue", "purple", "green")
SUBJECTS = ("house", "tree", "boat", "balloon", "heart", "flower")
SUBJECT_COLOURS = ("red", "orange", "yellow", "green", "mint", "blue", "purple", "pink", "white", "brown")
SIDES = ("left", "middle", "right")
WEATHERS = ("", "clouds", "rain", "snowfall")
WEATHER_WEIGHTS = (0.62, 0.22, 0.09, 0.07)


@dataclass(frozen=True)
class Scene:
    """One picture's contents; an empty string means that it has none. `seed` determines every brush stroke."""

    seed: int
    sky: str
    night: bool
    ground: str
    ground_colour: str
    light: str
    light_colour: str
    light_side: str
    subject: str
    subject_colour: str
    subject_side: str
    weather: str


def held_out(scene: Scene) -> bool:
    """Return whether the scene is a combination kept for tests: every part is trained, but never the pair."""
    return (scene.subject, scene.subject_colour) in {
        ("house", "pink"),
        ("tree", "purple"),
        ("boat", "green"),
        ("balloon", "mint"),
        ("heart", "blue"),
    } or (scene.light, scene.light_colour, scene.ground) in {
        ("moon", "orange", "desert"),
        ("sun", "green", "hills"),
        ("sun", "purple", "snow"),
    }


def _sample(seed: int, rng: random.Random) -> Scene:
    ground = rng.choices(tuple(GROUND_COLOURS), GROUND_WEIGHTS)[0]
    night = rng.random() < 0.15
    subject = rng.choice(SUBJECTS) if rng.random() < 0.6 else ""
    light = rng.choices(LIGHTS, (0.0, 0.55, 0.35, 0.0, 0.1) if night else (0.46, 0.14, 0.06, 0.12, 0.22))[0]
    if not subject and not light:
        light = "moon" if night else "sun"
    return Scene(
        seed=seed,
        sky=rng.choices(SKY_COLOURS, NIGHT_SKY_WEIGHTS if night else SKY_WEIGHTS)[0],
        night=night,
        ground=ground,
        ground_colour=rng.choice(GROUND_COLOURS[ground]),
        light=light,
        light_colour=rng.choice(LIGHT_COLOURS) if light in ("sun", "moon") else "",
        light_side=rng.choice(SIDES),
        subject=subject,
        subject_colour=rng.choice(SUBJECT_COLOURS) if subject else "",
        subject_side=rng.choice(SIDES),
        weather=rng.choices(WEATHERS, WEATHER_WEIGHTS)[0],
    )


def scene(seed: int, held: bool = False) -> Scene:
    """Return the scene of a seed: one for training, or with `held` one kept for tests."""
    rng = random.Random(seed)
    while True:
        candidate = _sample(seed, rng)
        if held_out(candidate) == held:
            return candidate
