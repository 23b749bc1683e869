"""Scenes: attributes drawn from a seed, and the combinations that are never trained on."""

import random
from dataclasses import dataclass, replace

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
DAY_LIGHT_WEIGHTS = (0.50, 0.16, 0.0, 0.12, 0.22)
NIGHT_LIGHT_WEIGHTS = (0.0, 0.5, 0.4, 0.0, 0.1)  # stars are only seen at night
LIGHT_COLOURS = ("yellow", "orange", "red", "pink", "white", "blue", "purple", "green")
SUBJECTS = ("house", "tree", "boat", "balloon", "heart", "flower", "girl")
SUBJECT_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 0.8, 0.8, 1.9)
SUBJECT_COLOURS = ("red", "orange", "yellow", "green", "mint", "blue", "purple", "pink", "white", "brown")
HAIR_COLOURS = ("black", "brown", "blonde", "pink", "blue", "purple", "red", "white", "green")
SIDES = ("left", "middle", "right")
WEATHERS = ("", "clouds", "rain", "snowfall")
WEATHER_WEIGHTS = (0.64, 0.22, 0.08, 0.06)


@dataclass(frozen=True)
class Scene:
    """One picture's contents; an empty string means that it has none. `seed` determines every brush stroke.

    A girl's `subject_colour` is that of her dress.
    """

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
    hair: str
    weather: str


def with_subject(of: Scene, subject: str, colour: str) -> Scene:
    """Return the same scene with another subject, or none; a girl's hair is brown."""
    return replace(of, subject=subject, subject_colour=colour, hair="brown" if subject == "girl" else "")


def held_out(scene: Scene) -> bool:
    """Return whether the scene is a combination kept for tests: every part is trained, but never the pair."""
    return (scene.subject, scene.subject_colour) in {
        ("house", "pink"),
        ("tree", "purple"),
        ("boat", "green"),
        ("balloon", "mint"),
        ("heart", "blue"),
        ("girl", "orange"),
    } or (scene.light, scene.light_colour, scene.ground) in {
        ("moon", "orange", "desert"),
        ("sun", "green", "hills"),
        ("sun", "purple", "snow"),
    }


def _sample(seed: int, rng: random.Random) -> Scene:
    ground = rng.choices(tuple(GROUND_COLOURS), GROUND_WEIGHTS)[0]
    night = rng.random() < 0.17
    subject = rng.choices(SUBJECTS, SUBJECT_WEIGHTS)[0] if rng.random() < 0.68 else ""
    light = rng.choices(LIGHTS, NIGHT_LIGHT_WEIGHTS if night else DAY_LIGHT_WEIGHTS)[0]
    if not subject and not light:
        light = "moon" if night else "sun"
    subject_side = rng.choice(SIDES)
    # a sun behind the subject would be hidden
    sides = [side for side in SIDES if side != subject_side] if subject else SIDES
    return Scene(
        seed=seed,
        sky=rng.choices(SKY_COLOURS, NIGHT_SKY_WEIGHTS if night else SKY_WEIGHTS)[0],
        night=night,
        ground=ground,
        ground_colour=rng.choice(GROUND_COLOURS[ground]),
        light=light,
        light_colour=rng.choice(LIGHT_COLOURS) if light in ("sun", "moon") else "",
        light_side=rng.choice(sides),
        subject=subject,
        subject_colour=rng.choice(SUBJECT_COLOURS) if subject else "",
        subject_side=subject_side,
        hair=rng.choice(HAIR_COLOURS) if subject == "girl" else "",
        weather=rng.choices(WEATHERS, WEATHER_WEIGHTS)[0],
    )


def scene(seed: int, held: bool = False) -> Scene:
    """Return the scene of a seed: one for training, or with `held` one kept for tests."""
    rng = random.Random(seed)
    while True:
        candidate = _sample(seed, rng)
        if held_out(candidate) == held:
            return candidate
