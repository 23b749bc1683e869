"""Fetching from a misbehaving server gives the right file or a clear error, never a wrong file under its name."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import urllib.parse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from pipelines.ask.identity import ModelFiles
from pipelines.ask.inputs import Inputs
from pipelines.ask.networks import Extras
from pipelines.ask.request import Settings
from pipelines.errors import InvalidInput, ModelError, redacted
from pipelines.infotext.asked import NO_DATA, settle, with_networks
from pipelines.models import loader
from tests import sd2
from tests.tiny.misbehaving import Answer, Server, running, wait_for_part, weights
from weights_script import __main__ as command_line
from weights_script.claims import claim
from weights_script.download import Expected, NoRoom, Part, download
from weights_script.extras import Library
from weights_script.fetch import ensure, fetch_url, present
from weights_script.ledger import NAME as LOCK_FILE
from weights_script.ledger import Ledger
from weights_script.manifest import Entry, Licence, Source, load_manifest
from weights_script.public import is_public_ip
from weights_script.resolve import resolve
from weights_script.web import Access, Patience, SourceFailed

DATA = weights(0)
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER = weights(1)
GOOD = Answer(body=DATA)
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
HURRY = Patience(timeout=20, first_wait=0.01, longest_wait=0.5, slowest=1e6)
KNOWN = Expected(size=len(DATA), sha256=SHA256)
NOTHING_KNOWN = Expected()


pytestmark = pytest.mark.usefixtures("no_settings")


def patience_with(answers: tuple[Answer, ...]) -> Patience:
    """Short of patience only where an answer is to be given up on: a busy machine answers late as well. Each try at
    one that drips takes the whole of it."""
    dripping = any(answer.drip >= 0.01 for answer in answers)
    given_up = dripping or any(answer.pause > 0.5 for answer in answers)
    return replace(HURRY, timeout=0.4, tries=2 if dripping else HURRY.tries) if given_up else HURRY


def fetched(server: Server, folder: Path, expected: Expected, *answers: Answer) -> Path:
    server.script["/weights"] = list(answers)
    target = folder / "weights.safetensors"
    patience = patience_with(answers)
    assert download(f"{server.address}/weights", target, expected, patience=patience) == SHA256
    return target


CUTS = [0, 1, 1000, len(DATA) // 2, len(DATA) - 1]
RECOVERED: dict[str, list[Answer]] = {
    "plain": [GOOD],
    **{f"cut at {cut}": [replace(GOOD, cut=cut), GOOD] for cut in CUTS},
    "cut four times": [replace(GOOD, cut=cut) for cut in (10_000, 20_000, 30_000, 5)] + [GOOD],
    "cut without ranges": [replace(GOOD, cut=1000, ranges=False), replace(GOOD, ranges=False)],
    "cut without version": [replace(GOOD, cut=1000, etag=""), replace(GOOD, etag="")],
    "changed after the cut": [Answer(body=OTHER, cut=5000, etag='"v0"'), GOOD],
    "changed, unseen by the server": [Answer(body=OTHER, cut=5000, etag='"v0"'), replace(GOOD, if_range=False)],
    "changed, without version": [Answer(body=OTHER, cut=5000, etag=""), replace(GOOD, etag="")],
    "429 that says when": [Answer(status=429, headers={"Retry-After": "0"}), GOOD],
    "503": [Answer(status=503), Answer(status=503), GOOD],
    "500 502 504": [Answer(status=500), Answer(status=502), Answer(status=504), GOOD],
    "slow start": [replace(GOOD, pause=0.2)],
    "hangs once": [replace(GOOD, pause=0.6), GOOD],
    "redirect": [Answer(status=302, headers={"Location": "/weights?again"}), GOOD],
    "chunked": [replace(GOOD, chunked=True)],
    "chunked, cut": [replace(GOOD, chunked=True, cut=1000), GOOD],
    "drips, but fast enough": [replace(GOOD, drip=0.0001)],
}


@pytest.mark.parametrize("expected", [KNOWN, NOTHING_KNOWN], ids=["known", "nothing known"])
@pytest.mark.parametrize("answers", RECOVERED.values(), ids=RECOVERED.keys())
def test_recovers(server: Server, tmp_path: Path, answers: list[Answer], expected: Expected) -> None:
    target = fetched(server, tmp_path, expected, *answers)
    assert target.read_bytes() == DATA
    assert list(tmp_path.iterdir()) == [target]


REFUSED: dict[str, tuple[Expected, list[Answer], str]] = {
    "wrong bytes": (KNOWN, [Answer(body=OTHER)], "wrong bytes"),
    "wrong bytes after a cut": (KNOWN, [replace(GOOD, cut=9), Answer(body=OTHER)], "wrong bytes"),
    "hash prefix": (Expected(sha256="0123456789"), [GOOD], "wrong bytes"),
    "shorter": (KNOWN, [Answer(body=DATA[:-1])], "wrong length"),
    "longer": (KNOWN, [Answer(body=DATA + b"!")], "wrong length"),
    "longer, chunked": (KNOWN, [Answer(body=DATA + b"!", chunked=True)], "longer than expected"),
    "announces more": (KNOWN, [Answer(body=DATA, announced=len(DATA) + 1)], "wrong length"),
    "sends less than it announces": (
        NOTHING_KNOWN,
        [replace(GOOD, announced=len(DATA) + 1, ranges=False)],
        "cut after",
    ),
    "always cut": (KNOWN, [replace(GOOD, cut=10)], "cut after"),
    "always cut, no ranges": (KNOWN, [replace(GOOD, cut=1000, ranges=False)], "cut after"),
    "no length": (NOTHING_KNOWN, [replace(GOOD, no_length=True)], "states no length"),
    "page": (NOTHING_KNOWN, [Answer(body=PAGE, headers={"Content-Type": "text/html"})], "web page"),
    "page as a file": (NOTHING_KNOWN, [Answer(body=PAGE)], "web page"),
    "pointer": (NOTHING_KNOWN, [Answer(body=b"version https://git-lfs.github.com/spec/v1\n")], "pointer"),
    "empty": (NOTHING_KNOWN, [Answer()], "empty"),
    "encoded": (KNOWN, [replace(GOOD, headers={"Content-Encoding": "gzip"})], "encoded as gzip"),
    "401": (KNOWN, [Answer(status=401)], "gone, private or gated"),
    "404": (KNOWN, [Answer(status=404)], "no such file"),
    "503 for ever": (KNOWN, [Answer(status=503)], "HTTP 503"),
    "429 for an hour": (KNOWN, [Answer(status=429, headers={"Retry-After": "3600"})], "3600 s"),
    "redirects in a circle": (KNOWN, [Answer(status=302, headers={"Location": "/weights"})], "HTTP 302"),
    "redirect elsewhere": (KNOWN, [Answer(status=302, headers={"Location": "ftp://127.0.0.1/x"})], "not allowed"),
    "other range": (KNOWN, [replace(GOOD, cut=9), replace(GOOD, headers={"Content-Range": "bytes 8-9/10"})], "range"),
    "drips": (KNOWN, [replace(GOOD, drip=0.01)], "too slow"),
}


@pytest.mark.parametrize(("expected", "answers", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(server: Server, tmp_path: Path, expected: Expected, answers: list[Answer], says: str) -> None:
    if says == "range":
        answers[1] = replace(answers[1], status=206, ranges=False)
    with pytest.raises(SourceFailed, match=says):
        fetched(server, tmp_path, expected, *answers)
    assert not (tmp_path / "weights.safetensors").exists()


def test_says_when_nobody_listens(tmp_path: Path) -> None:
    with running() as server:
        address = server.address
    with pytest.raises(SourceFailed, match="cannot be reached"):
        download(f"{address}/weights", tmp_path / "weights", KNOWN, patience=HURRY)


def test_goes_on_where_a_cut_left_it(server: Server, tmp_path: Path) -> None:
    fetched(server, tmp_path, KNOWN, replace(GOOD, cut=100_000), GOOD)
    asked = [(headers.get("Range"), headers.get("If-Range")) for _, headers in server.seen]
    assert asked == [(None, None), ("bytes=100000-", '"v1"')]


@pytest.mark.parametrize("stale", [OTHER[:1000], OTHER, OTHER + b"more"], ids=["short", "whole", "too long"])
def test_a_stale_part_does_no_harm(server: Server, tmp_path: Path, stale: bytes) -> None:
    (tmp_path / "weights.safetensors.part").write_bytes(stale)
    assert fetched(server, tmp_path, KNOWN, GOOD).read_bytes() == DATA


def test_a_kill_leaves_no_old_part_with_the_note_of_a_new_version(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.safetensors.part").write_bytes(OTHER[:1000])
    (tmp_path / "weights.safetensors.part.json").write_text('{"version": "\\"v0\\""}')
    remember = Part.remember

    def killed(part: Part, version: str) -> None:
        remember(part, version)
        raise KeyboardInterrupt

    monkeypatch.setattr(Part, "remember", killed)
    with pytest.raises(KeyboardInterrupt):
        fetched(server, tmp_path, NOTHING_KNOWN, GOOD)
    monkeypatch.setattr(Part, "remember", remember)
    assert fetched(server, tmp_path, NOTHING_KNOWN, GOOD).read_bytes() == DATA


def test_a_whole_part_needs_no_request(server: Server, tmp_path: Path) -> None:
    """Killed between the last byte and the renaming."""
    (tmp_path / "weights.safetensors.part").write_bytes(DATA)
    fetched(server, tmp_path, KNOWN, GOOD)
    assert server.seen == []


def test_says_at_once_when_the_disk_has_no_room(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", Mock(return_value=SimpleNamespace(free=1000)))
    with pytest.raises(NoRoom, match=r"needs 300 kB more .* 1 kB are free"):
        fetched(server, tmp_path, KNOWN, GOOD)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(NoRoom, match="disk is full"):
        fetched(server, tmp_path, KNOWN, GOOD)
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_folder_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors.part.json").mkdir()
    with pytest.raises(ModelError, match="cannot be written"):
        fetched(server, tmp_path, KNOWN, GOOD)


def test_memory_stays_bounded(server: Server, tmp_path: Path) -> None:
    body = bytes(24 << 20)  # before the tracing, which sees the server's thread too
    server.script["/weights"] = [Answer(body=body)]
    tracemalloc.start()
    download(f"{server.address}/weights", tmp_path / "weights", NOTHING_KNOWN, patience=HURRY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20


# ---------------------------------------------------------------- proxies, terminals


def test_a_proxy_is_asked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.address)
    server.script["http://weights.invalid/weights"] = [GOOD]
    assert fetch_url("http://weights.invalid/weights", tmp_path, patience=HURRY).read_bytes() == DATA


def test_no_proxy_is_asked_for_hosts_without(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(SourceFailed, match="cannot be reached"):
        fetched(server, tmp_path, KNOWN, GOOD)
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    assert fetched(server, tmp_path, KNOWN, GOOD).read_bytes() == DATA


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_for_terminals(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setattr(sys, "stderr", shown := Stream())
    fetched(server, tmp_path, KNOWN, GOOD)
    assert ("weights.safetensors: 100%" in shown.getvalue()) == terminal


# ---------------------------------------------------------------- processes

PROGRAM = """
import sys
from pathlib import Path
from weights_script.fetch import fetch_url
print(fetch_url(sys.argv[1], Path(sys.argv[2])).read_bytes().hex()[:8])
"""


def start(url: str, cache: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", PROGRAM, url, str(cache)], stdout=subprocess.PIPE, text=True)


def test_killed_in_the_middle_and_run_again(server: Server, tmp_path: Path) -> None:
    server.script["/big.safetensors"] = [replace(GOOD, drip=0.01), GOOD]
    url = f"{server.address}/big.safetensors"
    process = start(url, tmp_path)
    wait_for_part(tmp_path, 30_000)
    process.send_signal(signal.SIGKILL)
    process.wait(100)
    assert list(tmp_path.rglob("*.safetensors")) == []
    assert fetch_url(url, tmp_path, patience=HURRY).read_bytes() == DATA
    assert int(server.seen[-1][1]["Range"].removeprefix("bytes=").removesuffix("-")) > 0


def test_two_processes_fetch_once(server: Server, tmp_path: Path) -> None:
    server.script["/big.safetensors"] = [replace(GOOD, drip=0.0005)]
    processes = [start(f"{server.address}/big.safetensors", tmp_path) for _ in range(2)]
    assert [process.communicate(timeout=100)[0].strip() for process in processes] == [DATA.hex()[:8]] * 2
    assert len(server.seen) == 1


# ---------------------------------------------------------------- entries, mirrors, the lock file


SOME_MODEL = Entry(
    name="some-model",
    kind="model",
    format="ldm-safetensors",
    base="sd1",
    licence=Licence(name="MIT", url="https://example.org"),
    sources=(),
    file="weights.safetensors",
    size=len(DATA),
    sha256=SHA256,
)


def entry(*sources: Source) -> Entry:
    return replace(SOME_MODEL, sources=sources)


def at(server: Server, path: str) -> Source:
    return Source(url=f"{server.address}{path}")


def test_mirrors_are_tried_in_turn(server: Server, tmp_path: Path) -> None:
    server.script |= {"/wrong": [Answer(body=OTHER)], "/good": [GOOD]}
    wanted = entry(at(server, "/gone"), at(server, "/wrong"), at(server, "/good"))
    path = ensure(wanted, tmp_path, HURRY)
    assert path == tmp_path / "some-model" / "weights.safetensors"
    assert path.read_bytes() == DATA
    assert Ledger(tmp_path).records()["some-model/weights.safetensors"].source.endswith("/good")


def test_the_error_says_what_was_tried_in_one_line(server: Server, tmp_path: Path) -> None:
    server.script["/wrong"] = [Answer(body=OTHER)]
    with pytest.raises(ModelError) as caught:
        ensure(entry(at(server, "/gone"), at(server, "/wrong")), tmp_path, HURRY)
    text = str(caught.value)
    assert "\n" not in text
    for part in ("some-model", "/gone", "HTTP 404", "/wrong", "wrong bytes", "COG_WEIGHTS"):
        assert part in text


def test_what_is_here_needs_no_network(server: Server, tmp_path: Path) -> None:
    server.script["/good"] = [GOOD]
    wanted = entry(at(server, "/good"))
    assert present(wanted, tmp_path) is None
    assert ensure(wanted, tmp_path, HURRY) == ensure(wanted, tmp_path, HURRY) == present(wanted, tmp_path)
    assert len(server.seen) == 1


@pytest.mark.parametrize("left", [OTHER, DATA[:-1], b""], ids=["other", "cut", "empty"])
def test_a_wrong_file_under_the_right_name_is_replaced(server: Server, tmp_path: Path, left: bytes) -> None:
    server.script["/good"] = [GOOD]
    place = tmp_path / "some-model" / "weights.safetensors"
    place.parent.mkdir()
    place.write_bytes(left)
    assert ensure(entry(at(server, "/good")), tmp_path, HURRY).read_bytes() == DATA


def test_a_wrong_file_is_not_recorded(server: Server, tmp_path: Path) -> None:
    place = tmp_path / "some-model" / "weights.safetensors"
    place.parent.mkdir()
    place.write_bytes(DATA[:-1])
    for wanted in (entry(at(server, "/gone")), replace(entry(at(server, "/gone")), sha256="")):
        with pytest.raises(ModelError, match="HTTP 404"):
            ensure(wanted, tmp_path, HURRY)
    assert Ledger(tmp_path).records() == {}


def test_the_lock_file_holds_no_secret(server: Server, tmp_path: Path) -> None:
    server.script["/good"] = [GOOD]
    fetch_url(f"{server.address}/good?token=secret", tmp_path, patience=HURRY)
    assert "secret" not in (tmp_path / LOCK_FILE).read_text()


def test_the_first_fetch_is_trusted_and_enforced(server: Server, tmp_path: Path) -> None:
    server.script["/good"] = [GOOD]
    url = f"{server.address}/good"
    path = fetch_url(url, tmp_path, patience=HURRY)
    path.unlink()
    server.script["/good"] = [Answer(body=OTHER)]
    with pytest.raises(ModelError, match="wrong bytes"):
        fetch_url(url, tmp_path, patience=HURRY)
    assert not path.exists()
    server.script["/good"] = [GOOD]
    assert fetch_url(url, tmp_path, patience=HURRY).read_bytes() == DATA


def test_a_damaged_lock_file_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text('{"a":')
    with pytest.raises(ModelError, match=LOCK_FILE):
        ensure(entry(at(server, "/good")), tmp_path, HURRY)


def test_a_cache_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="PASTEL_CACHE"):
        ensure(entry(at(server, "/good")), tmp_path / "file", HURRY)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "s3://bucket/x", "http://"])
def test_only_web_addresses(url: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="http or https"):
        fetch_url(url, tmp_path)


def test_names_from_urls_stay_inside_the_cache(server: Server, tmp_path: Path) -> None:
    server.script |= {"/a/..%2f..%2fevil": [GOOD], "/models/6297": [GOOD]}
    assert fetch_url(f"{server.address}/a/..%2f..%2fevil", tmp_path).resolve().is_relative_to(tmp_path / "urls")
    assert fetch_url(f"{server.address}/models/6297", tmp_path).name == "6297.safetensors"


def test_an_address_as_people_write_it(server: Server, tmp_path: Path) -> None:
    server.script["/a%20sn%C3%B6w.safetensors"] = [GOOD]
    path = fetch_url(f"{server.address}/a snöw.safetensors?token=se cret", tmp_path, patience=HURRY)
    assert path.read_bytes() == DATA
    assert server.seen[0][0].endswith("?token=se%20cret")


# ---------------------------------------------------------------- Hugging Face

REPOSITORY = "someone/some-model"
NAMES = ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json", "tokenizer/vocab.json"]
WEIGHTS = [
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.bin",
    "text_encoder/model.safetensors",
]
UNWANTED = ["README.md", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors"]
FOLDER = Source(repo=REPOSITORY, revision="main")
FOLDER_MODEL = replace(SOME_MODEL, sources=(FOLDER,), file="", size=None, sha256="", format="diffusers-folder")


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server as a Hub with one diffusers folder."""
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    siblings: list[dict[str, object]] = []
    for name in NAMES + WEIGHTS + UNWANTED:
        content = weights(len(name)) if name in WEIGHTS else name.encode() * 100
        server.script[f"/{REPOSITORY}/resolve/main/{name}"] = [Answer(body=content)]
        sibling: dict[str, object] = {"rfilename": name, "size": len(content)}
        large = {"lfs": {"sha256": hashlib.sha256(content).hexdigest()}} if name in WEIGHTS else {}
        siblings.append(sibling | large)
    listing = json.dumps({"siblings": siblings}).encode()
    server.script[f"/api/models/{REPOSITORY}/revision/main"] = [Answer(status=503), Answer(body=listing)]
    return server


def test_a_folder_comes_whole_and_without_doubles(hub: Server, tmp_path: Path) -> None:
    folder = ensure(FOLDER_MODEL, tmp_path, HURRY)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}
    assert found == {*NAMES, *WEIGHTS}
    asked = len(hub.seen)
    assert ensure(FOLDER_MODEL, tmp_path, HURRY) == folder
    assert len(hub.seen) == asked
    (folder / ".complete").write_text('["model_')
    assert present(FOLDER_MODEL, tmp_path) is None


def served(server: Server, source: Source, files: Mapping[str, Path]) -> None:
    """Let the server be a Hub that has a source's repository, with these files by name."""
    siblings = []
    for name, path in files.items():
        content = path.read_bytes()
        server.script[f"/{source.repo}/resolve/{source.revision}/{name}"] = [Answer(body=content)]
        siblings.append(
            {"rfilename": name, "size": len(content), "lfs": {"sha256": hashlib.sha256(content).hexdigest()}}
        )
    listing = Answer(body=json.dumps({"siblings": siblings}).encode())
    server.script[f"/api/models/{source.repo}/revision/{source.revision}"] = [listing]


@pytest.mark.parametrize("form", ["single file", "folder"])
def test_a_depth_model_of_the_manifest_brings_its_estimator(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """MiDaS's network is a part of what is fetched, so that an image alone is enough."""
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    here, entry = tmp_path / "hub", load_manifest()["sd-2-depth"]
    here.mkdir()
    parts = sd2.networks(channels=5)
    if form == "single file":
        path = sd2.single_file(here / entry.file, parts)
        entry = replace(entry, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    else:
        path = sd2.folder(here, parts, prediction_type="epsilon")
        (path / "model_index.json").write_text("{}")
        whole = replace(entry.sources[0], file="")
        entry = replace(entry, format="diffusers-folder", file="", sha256="", sources=(whole,))
    files = {str(each.relative_to(here)): each for each in here.rglob("*") if each.is_file()}
    served(server, entry.sources[0], files | {"README.md": Path(__file__)})
    found = ensure(entry, tmp_path / "cache", HURRY)
    model = loader.load(ModelFiles(name="depth", checkpoint=found, vae=None, prediction=entry.prediction))
    assert model.depth is not None
    inverse = model.depth.depth(Image.new("RGB", (64, 64), "red"))
    assert inverse.shape == (1, 1, 384, 384)
    assert inverse.isfinite().all()


def test_a_folder_with_a_wrong_file_is_refused_and_taken_up_again(hub: Server, tmp_path: Path) -> None:
    path = f"/{REPOSITORY}/resolve/main/{WEIGHTS[0]}"
    right = hub.script[path]
    hub.script[path] = [Answer(body=b"x" * len(right[0].body))]
    with pytest.raises(ModelError, match="wrong bytes"):
        ensure(FOLDER_MODEL, tmp_path, HURRY)
    assert present(FOLDER_MODEL, tmp_path) is None
    hub.script[path] = right
    assert (ensure(FOLDER_MODEL, tmp_path, HURRY) / WEIGHTS[0]).read_bytes() == right[0].body


def test_the_manifest_outranks_the_listing(hub: Server, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="wrong bytes"):
        ensure(replace(FOLDER_MODEL, hashes={WEIGHTS[0]: SHA256}), tmp_path, HURRY)


@pytest.mark.parametrize("listing", [b"[]", b"{}", b"<html>", b'{"siblings": [{"rfilename": "README.md"}]}'])
def test_a_strange_listing_is_named(hub: Server, tmp_path: Path, listing: bytes) -> None:
    hub.script[f"/api/models/{REPOSITORY}/revision/main"] = [Answer(body=listing)]
    with pytest.raises(ModelError, match=r"repository's listing|no diffusers folder"):
        ensure(FOLDER_MODEL, tmp_path, HURRY)


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    with running() as elsewhere:
        elsewhere.script["/cdn"] = [GOOD]
        moved = Answer(status=302, headers={"Location": f"/{REPOSITORY}/moved"})
        away = Answer(status=302, headers={"Location": f"{elsewhere.address}/cdn?signature=secret"})
        hub.script |= {f"/{REPOSITORY}/resolve/main/w": [moved], f"/{REPOSITORY}/moved": [away]}
        with caplog.at_level("INFO"):
            ensure(entry(replace(FOLDER, file="w")), tmp_path, HURRY)
            with pytest.raises(ModelError):
                fetch_url(f"{elsewhere.address}/gone?token=hf_secretsecretsecret", tmp_path, patience=HURRY)
    sent = [headers.get("Authorization") for _, headers in hub.seen + elsewhere.seen]
    assert sent == ["Bearer hf_secretsecretsecret"] * 2 + [None, None]
    assert "secret" not in caplog.text + (tmp_path / LOCK_FILE).read_text()


def test_secrets_are_left_out_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "odd-token")
    text = "https://me:pass@host/x?token=abc, odd-token and hf_abcdefghij, https://host/y#z, www.host.com/x?token=abc"
    assert redacted(text) == "https://host/x, *** and hf_***, https://host/y, www.host.com/x"
    assert redacted("a cat/dog? (1girl:1.2), 3.5/4?") == "a cat/dog? (1girl:1.2), 3.5/4?"


def test_offline_fetches_nothing(hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        ensure(entry(FOLDER, replace(FOLDER, file="w"), at(hub, "/good")), tmp_path, HURRY)
    assert hub.seen == []


@pytest.mark.parametrize(("content", "serves"), [(DATA, True), (OTHER, False)], ids=["right", "wrong"])
def test_the_hubs_own_cache_serves_if_its_file_is_right(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, serves: bool
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repository = tmp_path / "hub" / "models--someone--some-model"
    for name, text in {"refs/main": b"abc", "snapshots/abc/w": content}.items():
        (repository / name).parent.mkdir(parents=True)
        (repository / name).write_bytes(text)
    wanted = entry(replace(FOLDER, file="w"))
    if serves:
        assert ensure(wanted, tmp_path / "cache", HURRY).read_bytes() == DATA
    else:
        with pytest.raises(ModelError):
            ensure(wanted, tmp_path / "cache", HURRY)


# ---------------------------------------------------------------- command line


def test_the_program_itself_killed_and_run_again(hub: Server, tmp_path: Path) -> None:
    """Nobody has the single file of pastel-mix; a repository that the manifest names has a folder, HF_HOME its VAE."""
    repository = "HeWhoRemixes/pastelmix-better-vae-fp16"
    unet, vae, _ = WEIGHTS
    hub.script |= {path.replace(REPOSITORY, repository): answers for path, answers in hub.script.items()}
    hub.script[f"/{repository}/resolve/main/{unet}"] = [replace(GOOD, drip=0.01)]
    del hub.script[f"/{repository}/resolve/main/{vae}"]
    listing = json.dumps({"siblings": [{"rfilename": name} for name in NAMES + WEIGHTS]}).encode()
    hub.script[f"/api/models/{repository}/revision/main"] = [Answer(body=listing)]
    kept = tmp_path / "hf/hub" / f"models--{repository.replace('/', '--')}"
    for name, content in {"refs/main": b"abc", f"snapshots/abc/{vae}": OTHER}.items():
        (kept / name).parent.mkdir(parents=True)
        (kept / name).write_bytes(content)

    def start() -> "subprocess.Popen[str]":
        words = [sys.executable, "-m", "weights_script", "--cache", str(tmp_path / "cache"), "fetch", "pastel-mix"]
        settings = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_secretsecretsecret"}
        return subprocess.Popen(words, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    process = start()
    wait_for_part(tmp_path, 30_000)
    process.kill()
    told = process.communicate(timeout=100)[0]
    hub.script[f"/{repository}/resolve/main/{unet}"] = [GOOD]
    process = start()
    told += process.communicate(timeout=100)[0]
    folder = Path(told.splitlines()[-1])
    assert process.returncode == 0
    assert [(folder / name).read_bytes() for name in (unet, vae)] == [DATA, OTHER]
    assert any("Range" in headers for path, headers in hub.seen if path.endswith(unet))
    assert hub.seen[-1][1]["Authorization"] == "Bearer hf_secretsecretsecret"
    assert "secret" not in told


def run(monkeypatch: pytest.MonkeyPatch, cache: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["weights_script", "--cache", str(cache), *arguments])
    return command_line.main()


def test_command_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script["/good"] = [GOOD]
    monkeypatch.setattr(command_line, "load_manifest", lambda: {"some-model": entry(at(server, "/good"))})
    assert run(monkeypatch, tmp_path, "path", "some-model") == 1
    assert "not here" in capsys.readouterr().err
    assert run(monkeypatch, tmp_path, "fetch", "some-model") == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.read_bytes() == DATA
    assert run(monkeypatch, tmp_path, "list") == 0
    assert "here" in capsys.readouterr().out
    assert run(monkeypatch, tmp_path, "verify") == 0
    path.write_bytes(OTHER)
    assert run(monkeypatch, tmp_path, "verify") == 1
    assert "wrong bytes" in capsys.readouterr().out
    assert run(monkeypatch, tmp_path, "fetch", "nobody") == 1
    assert "Known are some-model" in capsys.readouterr().err


def test_a_licences_note_is_said_by_list_and_fetch(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.script["/good"] = [GOOD]
    plain = entry(at(server, "/good"))
    noted = replace(plain, licence=replace(plain.licence, note="Ask the author first."))
    monkeypatch.setattr(command_line, "load_manifest", lambda: {"some-model": noted, "other-model": plain})
    assert run(monkeypatch, tmp_path, "list") == 0
    assert "Licence of some-model: Ask the author first.\n" in capsys.readouterr().out
    assert run(monkeypatch, tmp_path, "fetch", "some-model") == 0
    assert caplog.messages.count("Licence of some-model: Ask the author first.") == 1


def test_clean_leaves_what_a_fetch_recorded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script["/good"] = [GOOD]
    monkeypatch.setattr(command_line, "load_manifest", lambda: {"some-model": entry(at(server, "/good"))})
    assert run(monkeypatch, tmp_path, "fetch", "some-model") == 0
    path = Path(capsys.readouterr().out.strip())
    (tmp_path / "stranger.txt").write_bytes(b"x")
    busy = path.parent / "busy.safetensors.part"
    busy.write_bytes(b"x")
    own, brought = tmp_path / "loras" / "own.safetensors", tmp_path / "fetched" / "urls" / "0" / "brought.safetensors"
    for lora in (own, brought):
        lora.parent.mkdir(parents=True)
        lora.write_bytes(b"x")
    held = claim(tmp_path, "some-model", alone=True)
    assert held is not None
    with held:
        assert run(monkeypatch, tmp_path, "clean") == 0
    told = capsys.readouterr().out
    assert "some-model/busy.safetensors.part: being fetched" in told
    assert "stranger.txt" in told
    assert path.exists()
    assert busy.exists()
    assert brought.exists()
    assert run(monkeypatch, tmp_path, "verify") == 0
    assert run(monkeypatch, tmp_path, "clean", "--all") == 0
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [own]


# --- what may be connected to, and what is kept


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("192.0.0.8", False),
        ("168.63.129.16", False),
        ("240.0.0.1", False),
        ("fec0::1", False),
        ("::10.0.0.1", False),
        ("64:ff9b:1::1", False),
        ("2001:0:7f00:1::f7f7:f7f7", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public_ip(address) is public


PUBLIC = Access(public=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "0"])
def test_a_stranger_names_no_host_of_our_network(server: Server, tmp_path: Path, host: str) -> None:
    url = f"http://{host}:{server.server_port}/good"
    with pytest.raises(SourceFailed, match="not a host of the public internet"):
        fetch_url(url, tmp_path, patience=HURRY, access=PUBLIC)
    assert server.seen == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_name_that_resolves_otherwise_a_moment_later_is_not_connected_to(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: a public address when it is looked at, ours when it is connected to."""
    monkeypatch.setattr("weights_script.web.is_public", lambda host: True)
    with pytest.raises(SourceFailed, match="not a host of the public internet"):
        fetch_url(f"{server.address}/good", tmp_path, patience=HURRY, access=PUBLIC)
    assert server.seen == []


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/x", "file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_are_checked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    host = f"127.0.0.1:{server.server_port}"
    monkeypatch.setattr("weights_script.web.is_public", lambda name: name == "first.example")
    monkeypatch.setattr("weights_script.public.is_public_ip", lambda ip: True)
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **o: [(2, 1, 6, "", ("127.0.0.1", server.server_port))])
    server.script["/moved"] = [Answer(status=302, headers={"Location": target})]
    with pytest.raises(SourceFailed, match=r"not a host of the public internet|not allowed"):
        fetch_url(f"http://first.example:{host.partition(':')[2]}/moved", tmp_path, patience=HURRY, access=PUBLIC)
    assert [path for path, _ in server.seen] == ["/moved"]


def test_the_operator_may_allow_private_hosts(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASTEL_ALLOW_PRIVATE_ADDRESSES", "1")
    server.script["/good"] = [GOOD]
    assert fetch_url(f"{server.address}/good", tmp_path, patience=HURRY, access=PUBLIC).read_bytes() == DATA


@pytest.mark.parametrize(
    "body",
    [b'{"error": "rate limited"}', b"not found", b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(60), bytes(300)],
    ids=["json", "text", "empty pickle", "zip", "zeros"],
)
def test_an_answer_that_is_no_weights_is_not_trusted(server: Server, tmp_path: Path, body: bytes) -> None:
    server.script["/weights"] = [Answer(body=body), GOOD]
    with pytest.raises(SourceFailed, match=r"sent no weights|pointer instead"):
        fetch_url(f"{server.address}/weights", tmp_path, patience=HURRY)
    assert Ledger(tmp_path).records() == {}
    assert fetch_url(f"{server.address}/weights", tmp_path, patience=HURRY).read_bytes() == DATA


def test_failing_lines_leave_nothing_behind(server: Server, tmp_path: Path) -> None:
    for number in range(50):
        with pytest.raises(SourceFailed):
            fetch_url(f"{server.address}/gone-{number}", tmp_path, patience=HURRY)
    assert [path for path in tmp_path.rglob("*") if path.is_file() or path.parent.name == "urls"] == []


def test_a_long_name_is_shortened(server: Server, tmp_path: Path) -> None:
    name = "\u00fc" * 300
    server.script[f"/{urllib.parse.quote(name)}.safetensors"] = [GOOD]
    path = fetch_url(f"{server.address}/{urllib.parse.quote(name)}.safetensors", tmp_path, patience=HURRY)
    assert len(path.name.encode()) <= 120
    assert path.suffix == ".safetensors"


# --- LoRAs of a request


def load(**lines: str) -> tuple[Extras, Settings]:
    """What a request with these lines loads."""
    inputs = Inputs(prompt="a", **lines)  # type: ignore[arg-type]
    library, asked = Library(), settle(inputs, NO_DATA, {"width": 64, "height": 64})
    try:
        fetched = library.load_only(asked.wanted, inputs)
        return fetched.extras, with_networks(asked, fetched).settings
    finally:
        library.release()


@pytest.mark.parametrize("answer", [GOOD, replace(GOOD, chunked=True)], ids=["stated", "as it comes"])
def test_more_than_is_taken_is_refused(server: Server, tmp_path: Path, answer: Answer) -> None:
    server.script["/weights"] = [answer]
    with pytest.raises(ModelError, match=r"too large|longer than expected"):
        fetch_url(f"{server.address}/weights", tmp_path, Expected(at_most=len(DATA) - 1), HURRY)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert fetch_url(f"{server.address}/weights", tmp_path, Expected(at_most=len(DATA)), HURRY).read_bytes() == DATA


@pytest.mark.parametrize(
    ("files", "fetched"),
    [
        (["a.safetensors", "README.md"], "a.safetensors"),
        (["a.safetensors", "pytorch_lora_weights.safetensors"], "pytorch_lora_weights.safetensors"),
        (["a.safetensors", "b.safetensors"], ""),
        (["a.ckpt"], ""),
    ],
)
def test_a_repository_of_one_lora(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], fetched: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("PASTEL_CACHE", str(tmp_path))
    listing = json.dumps({"siblings": [{"rfilename": name} for name in files]}).encode()
    server.script["/api/models/some/lora/revision/main"] = [Answer(body=listing)]
    server.script[f"/some/lora/resolve/main/{fetched}"] = [GOOD]
    if not fetched:
        with pytest.raises(InvalidInput, match=r"loras='some/lora': must hold one \.safetensors file"):
            load(loras="some/lora:0.5")
        return
    extras, settings = load(loras="some/lora:0.5")
    name = fetched.removesuffix(".safetensors")
    assert extras.loras[name].path.read_bytes() == DATA
    assert settings.prompt == f"a <lora:{name}:0.5>"


@pytest.fixture
def hub_of_loras(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server as a Hub with the repositories some/lora and other/lora, of one file each."""
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("PASTEL_CACHE", str(tmp_path))
    for owner, content in {"some": DATA, "other": OTHER}.items():
        listing = json.dumps({"siblings": [{"rfilename": f"{owner}.safetensors"}]}).encode()
        server.script[f"/api/models/{owner}/lora/revision/main"] = [Answer(body=listing)]
        server.script[f"/{owner}/lora/resolve/main/{owner}.safetensors"] = [Answer(body=content)]
    return server


@pytest.mark.parametrize("place", ["some/lora/resolve/main/some.safetensors", "api/models/some/lora/revision/main"])
def test_the_operators_hub_may_be_anywhere_and_what_it_redirects_to_may_not(
    hub_of_loras: Server, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    with running() as elsewhere:
        elsewhere.script["/x"] = hub_of_loras.script[f"/{place}"]
        hub_of_loras.script[f"/{place}"] = [Answer(status=302, headers={"Location": f"{elsewhere.address}/x"})]
        with pytest.raises(ModelError, match="public internet"):
            brought("some/lora")
        assert elsewhere.seen == []
        monkeypatch.setenv("PASTEL_ALLOW_PRIVATE_ADDRESSES", "1")
        assert brought("some/lora").read_bytes() == DATA


@pytest.mark.parametrize("target", ["https://[", "//[::1"])
def test_a_redirect_to_no_address_is_told(hub_of_loras: Server, target: str) -> None:
    away = Answer(status=302, headers={"Location": target})
    hub_of_loras.script["/some/lora/resolve/main/some.safetensors"] = [away]
    with pytest.raises(ModelError, match=r"^loras='some/lora': .*redirects to an invalid address"):
        brought("some/lora")


def test_the_operator_sets_how_much_is_kept(
    hub_of_loras: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for one of two files: the second one takes the place of the first."""
    monkeypatch.setenv("PASTEL_FETCHED_GB", str((len(DATA) + 1000) / 2**30))
    first = brought("some/lora")
    assert brought("other/lora").exists()
    assert not first.exists()
    monkeypatch.setenv("PASTEL_FETCHED_GB", "0.0000001")
    with pytest.raises(ModelError, match="too large"):
        brought("some/lora")


@pytest.mark.parametrize("said", ["many", "0", "-1", "inf", "nan"])
def test_a_size_of_the_cache_that_is_none_fails_setup(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("PASTEL_FETCHED_GB", said)
    with pytest.raises(ModelError, match=f"^PASTEL_FETCHED_GB={said}: must be a number of GB above 0"):
        Library()


def test_what_another_process_uses_counts(
    hub_of_loras: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be deleted, so that there is less room."""
    monkeypatch.setattr("weights_script.room.ROOM", len(DATA) + 1000)
    path = brought("some/lora")
    key = path.parent.relative_to(tmp_path / "fetched").as_posix()
    held = claim(tmp_path / "fetched", key)  # as another process would
    assert held
    with held, pytest.raises(ModelError, match="too large"):
        brought("other/lora")
    assert path.exists()
    assert brought("other/lora").exists()


def test_two_processes_that_make_room_for_each_other(hub_of_loras: Server, tmp_path: Path) -> None:
    """Each fetches, uses and lets go, again and again, in a shelf for one file: nothing is lost under a reader."""
    program = """
import sys
from contextlib import closing
from pathlib import Path
from pipelines.errors import ModelError
from weights_script import room, shelf
room.ROOM = 350_000
for turn in range(12):
    owner = ("some", "other")[turn % 2]
    with closing(shelf.Shelf(Path(sys.argv[1]))) as mine:
        try:
            path = mine.fetch(f"{sys.argv[2]}/{owner}/lora/resolve/main/{owner}.safetensors")
        except ModelError as error:
            assert "too large" in str(error), error
            continue
        assert len(path.read_bytes()) == int(sys.argv[3])
        print(turn)
"""
    words = [sys.executable, "-c", program, str(tmp_path), hub_of_loras.address, str(len(DATA))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(words, text=True, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert len(out.split()) >= 3


def brought(line: str) -> Path:
    """The file of the one line of `loras`."""
    (file,) = load(loras=line)[0].loras.values()
    return file.path


@pytest.mark.parametrize(("share", "sent"), [("", None), ("1", "Bearer hf_secretsecretsecret")])
def test_a_request_has_the_operators_token_only_where_it_is_shared(
    hub_of_loras: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: str, sent: str | None
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    monkeypatch.setenv("PASTEL_SHARE_TOKEN", share)
    brought("some/lora")
    assert [headers.get("Authorization") for _, headers in hub_of_loras.seen] == [sent, sent]
    fetch_url(f"{hub_of_loras.address}/some/lora/resolve/main/some.safetensors", tmp_path)  # COG_WEIGHTS
    assert hub_of_loras.seen[-1][1]["Authorization"] == "Bearer hf_secretsecretsecret"


def test_only_whoever_runs_the_container_is_told_of_the_token(
    hub_of_loras: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_of_loras.script["/api/models/some/lora/revision/main"] = [Answer(status=401)]
    with pytest.raises(ModelError, match=r"^loras='some/lora': HTTP 401.*send the file in files\.$") as caught:
        brought("some/lora")
    assert "HF_TOKEN" not in str(caught.value)
    hub_of_loras.script["/private"] = [Answer(status=403)]
    with pytest.raises(ModelError, match=r"HTTP 403: .*HF_TOKEN"):
        ensure(entry(at(hub_of_loras, "/private")), tmp_path, HURRY)
    with pytest.raises(ModelError, match=r"COG_WEIGHTS: .*/private: HTTP 403: .*HF_TOKEN\. Check the address"):
        resolve(f"{hub_of_loras.address}/private?token=secret", None)


def test_a_request_brings_no_more_than_there_is_room(
    hub_of_loras: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weights_script.room.ROOM", len(DATA) + 1000)
    first = brought("some/lora")
    with pytest.raises(ModelError, match=r"^loras='other/lora': too large: 300 kB, at most 1 kB are taken"):
        load(loras="some/lora\nother/lora")
    assert first.exists()
    assert brought("other/lora").exists()
    assert not first.exists()


def of_names(*names: str) -> bytes:
    return save({name: torch.zeros(2, 2) for name in names})


KINDS = {
    "a Stable Diffusion checkpoint": of_names("model.diffusion_model.out.2.weight"),
    "a Stable Diffusion 3 checkpoint": of_names("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"),
    "a VAE": of_names("decoder.conv_in.weight"),
    "an upscaler": of_names("conv_first.weight"),
    "a LoRA": of_names("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"),
    "a ControlNet": of_names("control_model.time_embed.0.weight"),
    "a textual inversion embedding": of_names("emb_params"),
}


@pytest.mark.parametrize(("field", "right"), [("loras", "a LoRA"), ("controls", "a ControlNet")])
@pytest.mark.parametrize("sent", KINDS)
def test_weights_of_another_kind_are_not_trusted(
    hub_of_loras: Server, tmp_path: Path, field: str, right: str, sent: str
) -> None:
    """A server that once answered with a checkpoint in place of a LoRA would else be believed for good."""
    place = "/some/lora/resolve/main/some.safetensors"
    hub_of_loras.script[place] = [Answer(body=KINDS[sent]), Answer(body=KINDS[right])]
    if sent != right:
        with pytest.raises(ModelError, match=f"^{field}='some/lora': sent {sent}, which does not belong in {field}"):
            load(**{field: "some/lora"})
        assert Ledger(tmp_path / "fetched").records() == {}
        assert not list(tmp_path.rglob("some.safetensors"))
    extras, _ = load(**{field: "some/lora"})
    (file,) = getattr(extras, field).values()
    assert file.path.read_bytes() == KINDS[right]


def test_parts_that_nobody_goes_on_with_age_out(hub_of_loras: Server, tmp_path: Path) -> None:
    folders = {name: tmp_path / "fetched" / "urls" / name for name in ("old", "new", "whole", "empty")}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        if name != "empty":
            (folder / ("a.safetensors" if name == "whole" else "a.safetensors.part")).write_bytes(b"x")
        days = 0 if name == "new" else 2
        for path in (*folder.iterdir(), folder):
            os.utime(path, (time.time() - days * 24 * 3600,) * 2)
    brought("some/lora")
    assert {name: folder.exists() for name, folder in folders.items()} == {
        "old": False,
        "new": True,
        "whole": True,
        "empty": False,
    }


def test_what_was_forgotten_may_come_back_as_another(
    hub_of_loras: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weights_script.room.ROOM", len(DATA) + 1000)
    brought("some/lora")
    brought("other/lora")
    newer = weights(2)
    hub_of_loras.script["/some/lora/resolve/main/some.safetensors"] = [Answer(body=newer)]
    assert brought("some/lora").read_bytes() == newer


@pytest.mark.parametrize("offline", ["", "1"], ids=["down", "offline"])
def test_a_repository_whose_file_is_here_needs_no_hub(
    hub_of_loras: Server, monkeypatch: pytest.MonkeyPatch, offline: str
) -> None:
    before = brought("some/lora")
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    hub_of_loras.script["/api/models/some/lora/revision/main"] = [Answer(status=503)]
    assert brought("some/lora") == before
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    hub_of_loras.script["/api/models/some/lora/revision/main"] = [Answer(status=401)]
    with pytest.raises(ModelError, match="HTTP 401"):
        brought("some/lora")


@pytest.mark.parametrize(
    "listing",
    [
        b"[]",
        b'{"siblings": [{}]}',
        b"<html>",
        b"\xff",
        b'{"siblings": [{"rfilename": 1}]}',
        b'{"siblings": ' + b"1" * 100_000 + b"}",
    ],
    ids=lambda listing: listing[:20].decode("latin-1"),
)
def test_a_listing_that_is_none_is_told(hub_of_loras: Server, listing: bytes) -> None:
    hub_of_loras.script["/api/models/some/lora/revision/main"] = [Answer(body=listing)]
    with pytest.raises(ModelError, match=r"^loras='some/lora': did not answer with a listing"):
        brought("some/lora")


def test_a_controlnet_by_its_name(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest knows where it is, and the Hub's listing its hash."""
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("PASTEL_CACHE", str(tmp_path))
    repository, file = "comfyanonymous/ControlNet-v1-1_fp16_safetensors", "control_v11p_sd15_canny_fp16.safetensors"
    listed = {"rfilename": file, "size": len(DATA), "lfs": {"sha256": SHA256}}
    listing = json.dumps({"siblings": [listed, {"rfilename": "README.md"}]}).encode()
    server.script[f"/api/models/{repository}/revision/main"] = [Answer(body=listing)]
    server.script[f"/{repository}/resolve/main/{file}"] = [GOOD]
    extras, asked = load(controls="canny: 0.8")
    (control,) = asked.controls
    assert (control.weight, control.preprocessor) == (0.8, "canny")
    assert extras.controls[control.model].path.read_bytes() == DATA


def test_parts_count_and_what_another_process_uses_stays(
    hub_of_loras: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weights_script.room.ROOM", 2 * len(DATA))
    used = brought("some/lora")
    part = tmp_path / "fetched" / "urls" / "0123456789abcdef" / "x.safetensors.part"
    part.parent.mkdir()
    part.write_bytes(bytes(len(DATA)))
    held = claim(tmp_path / "fetched", used.parent.relative_to(tmp_path / "fetched").as_posix())
    assert held is not None
    with held:
        assert brought("other/lora").exists()
    assert used.exists()  # though it was used before the part came
    assert not part.exists()


def test_many_small_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_of_loras: Server) -> None:
    monkeypatch.setattr("weights_script.shelf.FOLDERS_MAX", 5)
    for number in range(20):
        (tmp_path / "fetched" / "urls" / f"{number:016x}").mkdir(parents=True)
    brought("some/lora")
    assert len(list((tmp_path / "fetched" / "urls").iterdir())) <= 5 + 1


EVICTOR = """
import sys
from pathlib import Path
from weights_script import room, shelf
room.ROOM = 1
for _ in range(200):
    shelf.Shelf(Path(sys.argv[1]))._make_room(0)
print("done")
"""


def test_a_process_that_makes_room_takes_nothing_from_one_that_fetches(
    hub_of_loras: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process deletes whatever it may while this one fetches and reads: no file vanishes in between."""
    evictor = subprocess.Popen([sys.executable, "-c", EVICTOR, str(tmp_path)], stdout=subprocess.PIPE)
    library = Library()
    inputs = Inputs(prompt="a", loras="some/lora")
    wanted = settle(inputs, NO_DATA, {"width": 64, "height": 64}).wanted
    try:
        while evictor.poll() is None:
            (file,) = library.load_only(wanted, inputs).extras.loras.values()
            assert file.path.read_bytes() == DATA
            library.release()
    finally:
        evictor.kill()
        evictor.wait()


@pytest.mark.usefixtures("hub_of_loras")
def test_a_token_is_in_no_text_whatever_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "wait", lambda *_: 0)  # for hosts that cannot be reached here
    for line in (
        "CIVITAI.COM/api/download/models/5?token=SE CRET",
        "https://civitai.com/models/5?token=SE%43RET",
        "https://SECRET:SECRET@civitai.com/x?a=1#SECRET",
    ):
        with pytest.raises((ModelError, InvalidInput)) as caught:
            brought(line)
        assert "CRET" not in str(caught.value)
