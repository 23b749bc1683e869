"""What people may write about a scene: sentences and booru tags, and the attributes that such a caption names."""

import random

from pastel_tiny.scenes import (
    GROUND_COLOURS,
    HAIR_COLOURS,
    LIGHT_COLOURS,
    LIGHTS,
    SIDES,
    SKY_COLOURS,
    SUBJECT_COLOURS,
    SUBJECTS,
    WEATHERS,
    Scene,
)

# attribute -> its values; "" for one that a caption does not name
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "sky": ("", *SKY_COLOURS),
    "night": ("", "night"),
    "ground": ("", *GROUND_COLOURS),
    "ground_colour": ("", *dict.fromkeys(word for words in GROUND_COLOURS.values() for word in words)),
    "light": ("", *filter(None, LIGHTS)),
    "light_colour": ("", *LIGHT_COLOURS),
    "light_side": ("", *SIDES),
    "subject": ("", *SUBJECTS),
    "subject_colour": ("", *SUBJECT_COLOURS),
    "subject_side": ("", *SIDES),
    "hair": ("", *HAIR_COLOURS),
    "weather": WEATHERS,
}
SYNONYMS: dict[str, tuple[str, ...]] = {
    "sea": ("sea", "sea", "sea", "ocean", "water"),
    "meadow": ("meadow", "meadow", "grass", "field", "flower field"),
    "desert": ("desert", "desert", "sand", "dunes"),
    "hills": ("hills", "hills", "hill"),
    "mountains": ("mountains", "mountains", "mountain"),
    "stars": ("stars", "stars", "starry sky"),
    "moon": ("moon", "moon", "crescent moon"),
    "house": ("house", "house", "cottage"),
    "boat": ("boat", "boat", "sailboat", "ship"),
    "balloon": ("balloon", "balloon", "hot air balloon"),
}
PLACES = {
    "sea": ("over the", "on the", "by the", "in the", "above the"),
    "hills": ("on the", "over the", "in the"),
    "meadow": ("in the", "on the", "over the"),
    "desert": ("in the", "over the"),
    "snow": ("in the", "on the", "over the"),
    "mountains": ("before the", "in the", "over the", "in front of the"),
}
WEATHER_WORDS = {
    "clouds": ("clouds", "white clouds", "cloudy"),
    "rain": ("rain", "rain", "raining", "rainy"),
    "snowfall": ("snowfall", "snowing", "snowflakes"),
}
# Words that change nothing. None of their tokens has a row of its own: all unknown tokens share one row, which training
# makes harmless, so this list stands for every other word too.
FILLERS = (
    "masterpiece", "best quality", "pastel", "thick painting", "soft colors", "illustration", "highly detailed",
    "scenery", "beautiful", "8k", "cute", "anime style", "upper body", "no humans", "solo",
    "looking at viewer", "absurdres", "highres", "painterly", "official art", "wallpaper",
    "trending on artstation", "very aesthetic", "smile", "portrait",
)  # fmt: skip
FLAWS = (
    "lowres", "bad anatomy", "bad hands", "text", "error", "missing fingers", "extra digit", "cropped",
    "worst quality", "low quality", "normal quality", "jpeg artifacts", "signature", "watermark", "username",
    "blurry", "ugly", "deformed",
)  # fmt: skip

Told = dict[str, str]


def _thing(noun: str, tint: str, rng: random.Random, share: float = 0.92) -> tuple[str, bool]:
    """Return a noun or one of its synonyms with its colour, and whether the colour is named."""
    word, with_colour = rng.choice(SYNONYMS.get(noun, (noun,))), bool(tint) and rng.random() < share
    return (f"{tint} {word}" if with_colour else word), with_colour


PLURAL = ("stars", "hills", "mountains", "dunes")
UNCOUNTED = ("water", "sand", "snow", "grass", "sky")


def _article(text: str) -> str:
    if text.split()[-1] in PLURAL + UNCOUNTED:
        return text
    return ("an " if text[0] in "aeiou" else "a ") + text


def _girl(scene: Scene, rng: random.Random, told: Told, tags: bool) -> str:
    """Describe a girl by her hair and her dress, in a phrase or in tags, or name her alone."""
    word = rng.choice(("1girl", "1girl", "girl") if tags else ("girl", "girl", "little girl", "small girl"))
    hair, dress = f"{scene.hair} hair", f"{scene.subject_colour} dress"
    named = rng.choices((("hair", "dress"), ("hair",), ("dress",), ()), (0.55, 0.16, 0.19, 0.1))[0]
    told["hair"] = scene.hair if "hair" in named else ""
    told["subject_colour"] = scene.subject_colour if "dress" in named else ""
    if tags:
        parts = [text for text, kind in ((hair, "hair"), (dress, "dress")) if kind in named]
        rng.shuffle(parts)
        return ", ".join([word, *parts])
    with_hair = f" with {hair}" if "hair" in named else ""
    in_dress = f" in {_article(dress)}" if "dress" in named else ""
    return word + (with_hair + in_dress if rng.random() < 0.6 else in_dress + with_hair)


def _subject(scene: Scene, rng: random.Random, told: Told, place: bool, tags: bool = False) -> str:
    told["subject"] = scene.subject
    if scene.subject == "girl":
        text = _girl(scene, rng, told, tags)
    else:
        text, with_colour = _thing(scene.subject, scene.subject_colour, rng)
        told["subject_colour"] = scene.subject_colour if with_colour else ""
    if not place:
        return text
    told["subject_side"] = scene.subject_side
    return f"{text} " + ("in the middle" if scene.subject_side == "middle" else f"on the {scene.subject_side}")


def _light(scene: Scene, rng: random.Random, told: Told, place: bool) -> str:
    text, with_colour = _thing(scene.light, scene.light_colour, rng)
    told["light"] = scene.light
    told["light_colour"] = scene.light_colour if with_colour else ""
    if not place or scene.light not in ("sun", "moon"):
        return text
    told["light_side"] = scene.light_side
    return f"{text} " + ("in the middle" if scene.light_side == "middle" else f"on the {scene.light_side}")


def _ground(scene: Scene, rng: random.Random, told: Told, share: float) -> str:
    text, with_colour = _thing(scene.ground, "" if scene.ground == "snow" else scene.ground_colour, rng, share)
    told["ground"] = scene.ground
    told["ground_colour"] = scene.ground_colour if with_colour else ""
    return text


def _extras(scene: Scene, rng: random.Random, told: Told) -> list[str]:
    extras = []
    if scene.weather and rng.random() < 0.85:
        told["weather"] = scene.weather
        extras.append(rng.choice(WEATHER_WORDS[scene.weather]))
    if scene.night and rng.random() < 0.9:
        told["night"] = "night"
        extras.append(rng.choice(("night", "at night", "night sky", "dark")))
    return extras


def _sentence(scene: Scene, rng: random.Random, told: Told) -> list[str]:
    """Describe a subject or a light over a ground, perhaps under a sky, and whatever else there is."""
    if scene.subject:
        text = _article(_subject(scene, rng, told, rng.random() < 0.35))
    else:
        text = _article(_light(scene, rng, told, rng.random() < 0.2))
    if rng.random() < 0.93:
        text += f" {rng.choice(PLACES[scene.ground])} {_ground(scene, rng, told, 0.65)}"
    parts = [text]
    if rng.random() < 0.6:
        told["sky"] = scene.sky
        sky = f"{scene.sky} sky"
        parts = [f"{text} under {'an' if scene.sky == 'orange' else 'a'} {sky}"] if rng.random() < 0.6 else [text, sky]
    if scene.subject and scene.light and rng.random() < 0.85:
        parts.append(_article(_light(scene, rng, told, rng.random() < 0.25)))
    return parts + _extras(scene, rng, told)


def _tags(scene: Scene, rng: random.Random, told: Told) -> list[str]:
    tags = _extras(scene, rng, told)
    if scene.subject and rng.random() < 0.95:
        tags.append(_subject(scene, rng, told, rng.random() < 0.25, tags=True))
    if scene.light and rng.random() < 0.85:
        tags.append(_light(scene, rng, told, rng.random() < 0.15))
    if rng.random() < 0.85:
        tags.append(_ground(scene, rng, told, 0.75))
    if rng.random() < 0.75:
        told["sky"] = scene.sky
        tags.append(f"{scene.sky} sky")
    rng.shuffle(tags)
    return tags


def fillers(rng: random.Random, flaws: bool = False) -> list[str]:
    """Return a few words without information."""
    return rng.sample(FLAWS if flaws else FILLERS, rng.choice((0, 0, 1, 2, 3, 5)))


def caption(scene: Scene, rng: random.Random) -> tuple[str, Told]:
    """Return one of the many captions of a scene, and the attributes that it names."""
    told: Told = {}
    parts = _sentence(scene, rng, told) if rng.random() < 0.6 else _tags(scene, rng, told)
    extra = fillers(rng)
    cut = rng.randint(0, len(extra))
    return ", ".join(extra[:cut] + parts + extra[cut:]), told


def empty(rng: random.Random) -> str:
    """Return a caption without information, the baseline of guidance; it may also look like a negative prompt."""
    return ", ".join(fillers(rng, flaws=rng.random() < 0.5)) if rng.random() < 0.5 else ""
