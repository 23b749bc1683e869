"""Figures: contestants in turn, medians and ratios, growth, and self-contained JSON."""

import json
import sys
from pathlib import Path

import pytest

from bench import __main__ as driver
from bench import flops, report, service, shapes


def test_every_other_round_goes_backwards() -> None:
    assert list(report.in_turn("abc", 3)) == list("abccbaabc")


def test_a_table_compares_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.os, "getloadavg", lambda: (1.5, 0, 0))
    figures = {"ours": [1.0, 2.0, 9.0], "a peer": [5.0, 3.0, 4.0]}
    assert report.table("One picture", "s", figures, "ours").split("\n") == [
        "One picture (load 1.50)",
        "         median  minimum  ratio",
        "ours    2.000 s  1.000 s  1.00x",
        "a peer  4.000 s  3.000 s  2.00x",
    ]


def test_the_round_before_the_first_does_not_count() -> None:
    calls: list[str] = []
    found = report.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == list("ababba")
    assert [len(samples) for samples in found.values()] == [2, 2]


def test_growth_is_the_exponent() -> None:
    assert shapes.slope([1, 2, 4, 8], [3 * amount**1.5 for amount in (1, 2, 4, 8)]) == pytest.approx(1.5)


def test_percentiles() -> None:
    samples = [float(number) for number in range(101)]
    assert (service.percentile(samples, 50), service.percentile(samples, 95)) == pytest.approx((50, 95))


def test_latent_sizes_are_height_and_width() -> None:
    assert flops.latent_size("96x64") == (96, 64)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_missing_peer_is_told_in_one_line_and_json_stands_alone(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setattr("sys.argv", ["bench", "peer_sdcpp", "--packages", str(tmp_path), *options])
    monkeypatch.setattr("bench.peers.networks", lambda model: None)
    for program in ("ours", "diffusers"):  # which would draw with a model of full size
        monkeypatch.setattr(f"bench.peer_sdcpp.{program}", lambda *_: lambda: [0.0, 1.0, 3.0])
    driver.main()
    *told, line = capsys.readouterr().out.splitlines()
    assert [text.partition(":")[0] for text in told[:1]] == ([] if options else ["Left out"])
    assert json.loads(line)["figures"] == {name: [1.0, 2.0, 1.0, 2.0] for name in ("ours", "diffusers")}
