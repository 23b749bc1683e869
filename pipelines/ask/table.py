"""All settings, by name and by their keys in generation data."""

from dataclasses import dataclass

from pipelines.ask.request import SETTINGS
from pipelines.ask.settings import Checked, Flag, Setting, Text, Whole, rows, setting


@dataclass(frozen=True, kw_only=True)
class Handling(Checked):
    """Settings about how to handle a request, apart from what it draws."""

    strict: bool = setting(
        "strict",
        Flag(),
        True,
        key="Strict",
        about="Refuse generation data whose picture cannot be reproduced here. Off: draw it and log what differs.",
    )
    dynamic_prompts: bool = setting(
        "dynamic_prompts",
        Flag(),
        False,
        key="Dynamic prompts",
        about="Pick one option of each {a|b|c} in a prompt, by the seed. Wildcards turn this on, too.",
    )
    upscale_only: bool = setting(
        "upscale_only",
        Flag(),
        False,
        key="Upscale only",
        about="Only enlarge the image, with the hires upscaler and scale. Nothing is drawn.",
    )
    file_names: str = setting(
        "file_names",
        Text(1000),
        "",
        key="File names",
        about="The names of the files, in order and separated by commas. Files sent as data URIs need this, because "
        "they have no names of their own.",
    )
    output_quality: int = setting(
        "output_quality",
        Whole(1, 100),
        95,
        key="Output quality",
        hint="95 is usual.",
        about="Quality of webp, jpg and films, from 1 to 100. png is lossless and ignores it.",
    )


ROWS: dict[str, Setting] = SETTINGS | {row.name: row for row in rows(Handling).values()}
"""Every setting by its name."""
BY_KEY: dict[str, Setting] = {row.key: row for row in ROWS.values() if row.key}
"""Every setting that has a key of its own in generation data, by that key."""
PAIRS = {
    "Size": ("width", "height"),
    "Hires resize": ("hires_width", "hires_height"),
    "Seed resize from": ("seed_resize_width", "seed_resize_height"),
}
"""Keys in generation data that hold two settings."""
KEY_OF: dict[str, str] = {row.name: row.key for row in BY_KEY.values()} | {
    name: f"{key}, {side}"
    for key, names in PAIRS.items()
    for name, side in zip(names, ("width", "height"), strict=True)
}
"""The name that errors use for a setting that came from generation data."""
