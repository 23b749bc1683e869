"""The settings by what generation data calls them."""

from dataclasses import dataclass

from pipelines.ask.request import SETTINGS
from pipelines.ask.settings import Checked, Flag, Setting, Text, rows, setting


@dataclass(frozen=True, kw_only=True)
class Handling(Checked):
    """How a request is handled, beside what it draws."""

    strict: bool = setting(
        "strict",
        Flag(),
        True,
        key="Strict",
        about="Refuse a block of generation data that gives another picture here. Off: draw, and tell what differs.",
    )
    dynamic_prompts: bool = setting(
        "dynamic_prompts",
        Flag(),
        False,
        key="Dynamic prompts",
        about="Pick one of {a|b|c} wherever a prompt says so, by the seed. Wildcards turn it on, too.",
    )
    upscale_only: bool = setting(
        "upscale_only",
        Flag(),
        False,
        key="Upscale only",
        about="Only enlarge the image, by the hires upscaler and scale; nothing is drawn.",
    )
    file_names: str = setting(
        "file_names",
        Text(1000),
        "",
        key="File names",
        about="What the files are called, in their order and between commas. Files that are sent as data URIs need it: "
        "they have no names of their own.",
    )


ROWS: dict[str, Setting] = SETTINGS | {row.name: row for row in rows(Handling).values()}
"""Every setting by its name."""
BY_KEY: dict[str, Setting] = {row.key: row for row in ROWS.values() if row.key}
"""Every setting that generation data can hold by itself, by the key it has there."""
PAIRS = {
    "Size": ("width", "height"),
    "Hires resize": ("hires_width", "hires_height"),
    "Seed resize from": ("seed_resize_width", "seed_resize_height"),
}
"""Keys of generation data that hold two settings."""
KEY_OF: dict[str, str] = {row.name: row.key for row in BY_KEY.values()} | {
    name: f"{key}, {side}"
    for key, names in PAIRS.items()
    for name, side in zip(names, ("width", "height"), strict=True)
}
"""What errors call a setting that generation data said."""
