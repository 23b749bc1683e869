"""README.md stays short, and its models and recipes are those of the manifest and the cookbook."""

import re

from script.schema import ROOT
from weights_script.manifest import load_manifest

README = (ROOT / "README.md").read_text(encoding="utf-8")
COOKBOOK = (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.encode()) <= 7000


def test_models_have_the_licences_of_the_manifest() -> None:
    manifest = load_manifest()
    rows = re.findall(r"^\| (`.+) \| (.+) \|$", README, flags=re.M)
    told = {name: licence for names, licence in rows for name in re.findall(r"`([^`]+)`", names)}
    assert len(told) > 8
    assert told == {name: manifest[name].licence.name for name in told}


def test_recipes_are_drawn_with_the_cookbook() -> None:
    recipes = re.findall(r"\n\n((?:    script/predict.+\n(?:    .+\n)*))", README.split("\n## Five recipes\n")[1])
    assert len(recipes) == 5
    assert [recipe for recipe in recipes if f"\n\n{recipe}\n" not in COOKBOOK] == []
