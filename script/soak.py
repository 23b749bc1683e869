"""Stress a real Cog server with the embedded model: odd requests, many predictions, cancels at random moments of every
ability, harmful files, killed workers, a full cache that two servers share, or several models in one server.

Prints a table of figures and exits with 1 if something did not hold. docs/reliability.md reports the results.
"""

import argparse
import hashlib
import io
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from itertools import cycle
from pathlib import Path
from subprocess import TimeoutExpired
from types import MappingProxyType
from typing import Any

import psutil
from PIL import Image
from safetensors.torch import load_file

from pastel_tiny.forms import FILES, FORMS, compose
from script import hostile, hostile_files
from script.cog_server import ROOT, CogServer, ServerError

FIXED: hostile.Json = {"width": 128, "height": 128, "num_inference_steps": 3, "hires_steps": 2, "seed": 5}
"""The request whose picture must stay the same to the last byte."""
READY_SECONDS = 2.0
"""The server must be ready this soon after a cancel, whatever is running."""
END_SECONDS = 60.0
"""A server that cannot draw any more must end within this time."""
GROWTH_MB = 50.0
"""How far the last quarter's memory may exceed the first's. Allocators fluctuate by about 40 MB."""

Figures = dict[str, object]


def send_requests(server: CogServer, count: int, start: int) -> Figures:
    """Send messages from valid to hostile. Raises hostile.Broken."""
    statuses: Counter[str] = Counter()
    slowest, workers = 0.0, hostile.workers(server)

    with hostile.junk_web() as web:

        def act(message: hostile.Message) -> None:
            nonlocal slowest
            answer = hostile.check(server, message, workers)
            statuses[f"{answer.status}{' failed' if answer.failed else ''}"] += 1
            slowest = max(slowest, answer.seconds)

        hostile.for_each(hostile.messages(web), count, start, act)
    told = ", ".join(f"{status}: {number}" for status, number in sorted(statuses.items()))
    return {"requests": statuses.total(), "answers": told, "slowest answer": f"{slowest:.1f} s"}


def draw_predictions(server: CogServer, count: int, start: int) -> Figures:
    """Draw valid predictions. Memory must not grow, no files may be left, and one picture must stay the same.

    Raises hostile.Broken.
    """
    first, workers = picture(server), hostile.workers(server)
    memory: list[float] = []
    refused = 0

    def act(inputs: hostile.Json) -> None:
        nonlocal refused
        refused += hostile.check(server, hostile.prediction(inputs), workers).failed
        memory.append(resident(server))
        if len(memory) == count // 2:
            must(picture(server) == first, "the fixed picture has changed in the middle")

    hostile.for_each(hostile.valid_inputs(), count, start, act)
    must(picture(server) == first, "the fixed picture has changed at the end")
    warm = memory[len(memory) // 5 :]  # before that, memory grows to what the largest picture needs
    quarter = len(warm) // 4
    early, late = statistics.mean(warm[:quarter]), statistics.mean(warm[-quarter:])
    slope = statistics.linear_regression(range(len(warm)), warm).slope * 100
    figures: Figures = {
        "predictions": f"{len(memory)}, of which {refused} were refused with one sentence",
        "memory, first quarter": f"{early:.0f} MB, after a fifth that is not counted",
        "memory, last quarter": f"{late:.0f} MB",
        "memory, highest": f"{max(memory):.0f} MB",
        "memory, slope": f"{slope:+.1f} MB per 100 predictions",
    }
    must(late - early < GROWTH_MB, f"memory grew by more than {GROWTH_MB:.0f} MB: {figures}")
    return figures


def abilities() -> dict[str, tuple[hostile.Json, float]]:
    """Return what can be running when a prediction is cancelled: inputs, and the seconds in which to cancel."""
    large, small = (hostile_files.as_uri(_picture(side)) for side in (2000, 512))
    data = ROOT / "tests" / "data"
    network, lora, embedding, control = (
        hostile_files.as_uri((data / path).read_bytes())
        for path in (
            "upscalers/4x-tiny.safetensors",
            "loras/snowman.safetensors",
            "embeddings/afterglow.safetensors",
            "controlnets/canny-tiny.safetensors",
        )
    )
    drawn: hostile.Json = {"width": 512, "height": 512, "num_inference_steps": 50, "highres_fix": "Off", "seed": 5}
    enlarged: hostile.Json = {"generation_data": "Upscale only: True", "image": large, "hires_scale": 2.0}
    highres = drawn | {"num_inference_steps": 2, "highres_fix": "On", "hires_steps": 2}
    sides = {"width": 1024, "height": 1024}
    return {
        "all phases": (FIXED | {"num_inference_steps": 20, "hires_steps": 20, "show_phases": True}, 4),
        "one step at 2048x2048": (drawn | {"width": 2048, "height": 2048}, 20),
        "decoding 2048x2048": (highres | sides | {"num_inference_steps": 1}, 60),
        "four pictures": (drawn | {"num_outputs": 4}, 10),
        "highres fix by a network": (highres | {"files": [network]}, 20),
        "enlarging by a network": (enlarged | {"files": [network]}, 20),
        "enlarging by Lanczos": (enlarged | {"hires_upscaler": "Lanczos", "hires_scale": 2.8}, 10),
        "encoding a large WebP": (enlarged | {"hires_upscaler": "Nearest", "output_format": "webp"}, 10),
        "from a picture": (drawn | {"image": large, "denoising_strength": 0.9}, 6),
        "inpainting": (drawn | {"image": small, "mask": small, "inpaint_area": "Only masked"}, 6),
        "outpainting": (drawn | {"image": small, "outpaint": "left 256", "mask_blur": 32}, 6),
        "LoRA": (drawn | _named("snowman", lora) | {"prompt": "<lora:snowman:0.8>"}, 4),
        "embedding": (drawn | _named("afterglow", embedding) | {"prompt": "afterglow"}, 4),
        "ControlNet": (drawn | _named("mine", control) | {"controls": "canny of mine", "control_images": [large]}, 6),
        "long prompts": (
            drawn
            | {"highres_fix": "On", "prompt": "a BREAK " * 60, "generation_data": f"Hires prompt: {'b BREAK ' * 60}"},
            6,
        ),
        "dynamic prompts": (drawn | {"generation_data": "Dynamic prompts: True", "prompt": "{a|b|c}, " * 1000}, 4),
        "DPM adaptive": (drawn | {"sampler": "DPM adaptive", "schedule_type": "Karras"}, 8),
    }


def _named(name: str, uri: str) -> hostile.Json:
    """Return inputs with an uploaded file under this name."""
    return {"files": [uri], "generation_data": f"File names: {name}"}


def cancel_predictions(server: CogServer, count: int, start: int) -> Figures:
    """Cancel through the endpoint and by hanging up, at random moments of every ability. Raises hostile.Broken."""
    chance, first, workers = random.Random(start), picture(server), hostile.workers(server)
    waits: dict[str, list[float]] = {}
    ends: Counter[str] = Counter()
    for number, (name, (inputs, seconds)) in zip(range(count), cycle(abilities().items()), strict=False):
        identifier = f"cancel-{start}-{number}"
        events: Any = server.events(identifier, inputs)
        next(events)
        time.sleep(chance.uniform(0, seconds))
        asked = time.monotonic()
        if chance.random() < 0.5:
            server.cancel(identifier)
            *_, last = events
            ends[last.data["status"]] += 1
            if last.data["status"] == "failed":
                raise hostile.Broken(f"{name}: {last.data['error']}")
        else:
            events.close()
            ends["hung up"] += 1
        server.wait_until_ready(hostile.ANSWER_SECONDS)
        waits.setdefault(name, []).append(time.monotonic() - asked)
        must(hostile.workers(server) == workers, f"{name}, cancel {number}: the worker was replaced")
        # Cog is ready a moment before its slot is free
        server.predict_when_free({"width": 64, "height": 64, "num_inference_steps": 1, "highres_fix": "Off"}, 120)
        server.wait_until_ready(hostile.ANSWER_SECONDS)
    must(picture(server) == first, "the fixed picture has changed at the end")
    every = [wait for of_one in waits.values() for wait in of_one]
    longest = {name: max(of_one) for name, of_one in waits.items()}
    figures: Figures = {
        "cancels": ", ".join(f"{end}: {times}" for end, times in sorted(ends.items())),
        "ready again, median": f"{statistics.median(every):.2f} s",
        "ready again, longest": ", ".join(f"{name} {wait:.2f} s" for name, wait in longest.items()),
    }
    must(max(every) < READY_SECONDS, f"ready too late: {figures}")
    return figures


USES: tuple[hostile.Json, ...] = (
    {"controls": "canny of mine"},
    {"prompt": "<lora:mine:1>"},
    {"prompt": "mine"},
    {"highres_fix": "On"},
)
"""Ways to use an uploaded file: as a ControlNet, a LoRA, an embedding or an upscaler."""


def send_files(server: CogServer, count: int, start: int) -> Figures:
    """Send harmful files of every kind, in every input that accepts them. Raises hostile.Broken."""
    chance, first, workers = random.Random(start), picture(server), hostile.workers(server)
    slowest: dict[str, float] = {}
    before, highest = resident(server), 0.0
    for _, (kind, (make, names)) in zip(range(count), cycle(hostile_files.KINDS.items()), strict=False):
        name, uri = chance.choice(names), hostile_files.as_uri(make(chance))
        inputs = _named("mine", uri) | chance.choice(USES) if name == "files" else {name: uri}
        answer = hostile.check(server, hostile.prediction(hostile.cheap(inputs)), workers)
        slowest[kind] = max(slowest.get(kind, 0.0), answer.seconds)
        highest = max(highest, resident(server))
    must(picture(server) == first, "the fixed picture has changed at the end")
    return {
        "files": count,
        "slowest answers": ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in slowest.items()),
        "memory": f"{before:.0f} MB before, {highest:.0f} MB at most after an answer",
    }


def kill_servers(server: CogServer, count: int, start: int) -> Figures:
    """Kill workers and send ids that block the slot. Start another server for each one that ends, as a restart policy
    would, and check that it gives the same picture. Raises hostile.Broken."""
    chance, first = random.Random(start), picture(server)
    ends: Counter[str] = Counter()
    waits: list[float] = []
    for number in range(count):
        with fresh_server() as (other, _):
            must(picture(other) == first, f"server {number}: the fixed picture has changed")
            way = chance.choice(list(WAYS_TO_END))
            asked = time.monotonic()
            WAYS_TO_END[way](other)
            try:
                code = other.process.wait(END_SECONDS)
            except TimeoutExpired:
                raise hostile.Broken(f"server {number}, {way}: it is still running and {other.status()}") from None
            waits.append(time.monotonic() - asked)
            must(code != 0, f"server {number}, {way}: it ended without an error")
            ends[way] += 1
    return {
        "servers": ", ".join(f"{way}: {times}" for way, times in sorted(ends.items())),
        "ended after, median": f"{statistics.median(waits):.1f} s",
        "ended after, longest": f"{max(waits):.1f} s",
    }


HUB_LORAS = 12
"""LoRAs of the hub below."""
ROOM_LORAS = 4.5
"""How many of them the cache has room for."""


def press_cache(server: CogServer, count: int, start: int) -> Figures:
    """Two servers fetch LoRAs at once into one cache that is too small for all of them. Every request must be drawn,
    and the files of both must stay within the bound. Raises hostile.Broken."""
    chance, lora = random.Random(start), (ROOT / "tests" / "data" / "loras" / "snowman.safetensors").read_bytes()
    highest, picked = 0, [chance.sample(range(HUB_LORAS), chance.randint(1, 2)) for _ in range(count)]
    with tempfile.TemporaryDirectory(prefix="soak-cache-") as cache, hub_of_loras(lora) as hub, ExitStack() as stack:
        bound = ROOM_LORAS * len(lora)
        settings = {"PASTEL_CACHE": cache, "HF_ENDPOINT": hub, "PASTEL_FETCHED_GB": str(bound / 2**30)}
        both = [stack.enter_context(fresh_server(settings))[0] for _ in range(2)]
        seen = [hostile.workers(one) for one in both]

        def draw(one: CogServer, wanted: list[list[int]]) -> None:
            for numbers in wanted:
                inputs = {"loras": "\n".join(f"soak/lora{number}" for number in numbers)}
                reply = one.predict_when_free(hostile.cheap(inputs), 120)
                must(reply.body.get("status") == "succeeded", f"LoRAs {numbers}: {reply}")

        with ThreadPoolExecutor() as pool:
            drawn = [pool.submit(draw, one, picked[place::2]) for place, one in enumerate(both)]
            while not all(each.done() for each in drawn):
                highest = max(highest, size_of(Path(cache)))
                time.sleep(0.02)
            for each in drawn:
                each.result()
        must([hostile.workers(one) for one in both] == seen, "a worker is another one")
        must(highest <= bound + SMALL_FILES, f"the cache had {highest} bytes, and {bound:.0f} are allowed")
    return {
        "requests": f"{count}, all drawn, of {HUB_LORAS} LoRAs",
        "cache": f"{highest / len(lora):.1f} LoRAs at most; it has room for {ROOM_LORAS}",
    }


SWITCHED = ("sdxl", "refiner")
"""Forms of the embedded model that stand beside it below."""
BROKEN = "the broken one"
BLOCK = """a red boat on the sea
Steps: 4, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 5, Size: 128x128"""


def switch_models(server: CogServer, count: int, start: int) -> Figures:
    """Switch between models, one of them broken, in a server that holds several. Every way to ask for one must always
    give the same picture, and memory must not grow. Raises hostile.Broken."""
    with tempfile.TemporaryDirectory(prefix="soak-models-") as folder:
        files = {name: Path(folder) / f"{name}.safetensors" for name in (*SWITCHED, "broken")}
        for name in SWITCHED:
            compose(load_file(FILES / f"{name}.safetensors"), files[name], FORMS[name])
        files["broken"].write_bytes(b"no weights")
        digits = hashlib.sha256(files["sdxl"].read_bytes()).hexdigest()[:10]
        with fresh_server({"PASTEL_MODEL": ",".join(["pastel-tiny", *map(str, files.values())])}) as (other, _):
            return _switch(other, count, random.Random(start), digits)


def _switch(server: CogServer, count: int, chance: random.Random, digits: str) -> Figures:
    """Ask in all ways at first, then in ways by chance, each time in another than before."""
    ways: dict[str, hostile.Json] = {
        "the first model": {"generation_data": BLOCK},
        "by its name": {"generation_data": BLOCK, "model": "sdxl"},
        "by its hash": {"generation_data": f"{BLOCK}, Model hash: {digits}"},
        "with a refiner": {"generation_data": f"{BLOCK}, Refiner: refiner, Refiner switch at: 0.5", "model": "sdxl"},
        BROKEN: {"generation_data": BLOCK, "model": "broken"},
    }
    answers: dict[str, set[str]] = {way: set() for way in ways}
    memory, workers, way = [], hostile.workers(server), ""
    for number in range(count):
        way = [*ways][number] if number < len(ways) else chance.choice([each for each in ways if each != way])
        body = server.predict_when_free(ways[way]).body
        must((body["status"] == "succeeded") != (way == BROKEN), f"{way}: {body.get('error')}")
        answers[way].add(str(body.get("output") or body["error"]))
        memory.append(resident(server))
    must(all(len(each) == 1 for each in answers.values()), "a way gave different answers")
    must(answers["by its name"] == answers["by its hash"], "the hash means another model than the name")
    must(len(set.union(*answers.values())) == len(ways) - 1, "two models drew the same picture")
    must("cannot be used here" in next(iter(answers[BROKEN])), f"{BROKEN}: {answers[BROKEN]}")
    must(hostile.workers(server) == workers, "the worker is another one")
    quarter = count // 4
    early, late = statistics.mean(memory[quarter : 2 * quarter]), statistics.mean(memory[-quarter:])
    must(late - early < GROWTH_MB, f"memory grew from {early:.0f} to {late:.0f} MB")
    return {
        "predictions": f"{count}, in {len(ways)} ways, each with one answer",
        "memory": f"{early:.0f} MB in the second quarter, {late:.0f} MB in the last, {max(memory):.0f} MB at most",
    }


SMALL_FILES = 200_000
"""Bytes of listings, locks and the ledger, which lie beside the LoRAs."""


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder, in which others delete files meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


class _Hub(BaseHTTPRequestHandler):
    """A Hub whose repositories soak/lora0, soak/lora1 and so on hold one file each."""

    lora = b""

    def do_GET(self) -> None:
        name = self.path.split("/lora", 1)[-1].split("/")[0]
        listing = json.dumps({"siblings": [{"rfilename": f"lora{name}.safetensors"}]}).encode()
        body = listing if self.path.startswith("/api/") else self.lora
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def hub_of_loras(lora: bytes) -> Iterator[str]:
    """The address of such a Hub."""
    with hostile.served(type("Hub", (_Hub,), {"lora": lora})) as address:
        yield address


def _kill_worker(server: CogServer) -> None:
    for worker in hostile.workers(server):
        psutil.Process(worker).kill()


def _kill_worker_at_work(server: CogServer) -> None:
    server.start("at-work", FIXED | {"num_inference_steps": 150})
    time.sleep(1)
    _kill_worker(server)


def _take_slot(server: CogServer) -> None:
    server.request("POST", "/predictions", {"id": "a\0b", "input": FIXED})


def _take_slot_by_length(server: CogServer) -> None:
    server.request("POST", "/predictions", {"id": "a" * 300, "input": FIXED})


WAYS_TO_END = {
    "worker killed": _kill_worker,
    "worker killed at work": _kill_worker_at_work,
    "id with NUL": _take_slot,
    "id of 300 letters": _take_slot_by_length,
}


def _picture(side: int) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def picture(server: CogServer) -> str:
    """Return the fixed request's picture as a data URI."""
    server.wait_until_ready(hostile.ANSWER_SECONDS)
    reply = server.predict(FIXED)
    must(reply.status == 200 and reply.body["status"] == "succeeded", f"the fixed request: {reply}")
    server.wait_until_ready(hostile.ANSWER_SECONDS)
    return str(reply.body["output"])


def resident(server: CogServer) -> float:
    """Return the MB of the server and its worker."""
    parent = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True))) / 2**20


def must(holds: bool, else_: str) -> None:
    if not holds:
        raise hostile.Broken(else_)


@contextmanager
def fresh_server(settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[tuple[CogServer, Path]]:
    """Yield a ready server with the embedded model and these settings, and the folder for its files."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        environment = {"TMPDIR": folder, "PASTEL_MODEL": "", "COG_WEIGHTS": "", **settings}
        with CogServer(environment, log=lambda line: None) as server:
            server.wait_until_ready()
            yield server, Path(folder)


KINDS = {
    "requests": send_requests,
    "predictions": draw_predictions,
    "cancels": cancel_predictions,
    "files": send_files,
    "kills": kill_servers,
    "cache": press_cache,
    "models": switch_models,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/soak", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=100, help="how many to send or draw; default: 100")
    parser.add_argument("--seed", type=int, default=1, help="the same ones for the same seed; default: 1")
    options = parser.parse_args()
    started = time.monotonic()
    with fresh_server() as (server, folder):
        try:
            figures = KINDS[options.kind](server, options.count, options.seed)
            picture(server)
            files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
            must(len(files) == 1, f"files are left: {files}")
        except (hostile.Broken, ServerError) as broken:
            print(f"script/soak: {broken}", file=sys.stderr)
            return 1
    figures |= {"at the end": "ready, and one file: the last picture", "time": f"{time.monotonic() - started:.0f} s"}
    print("\n".join(f"{name:24}{value}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
