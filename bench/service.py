"""service: predictions over HTTP with the real Cog server: latency, throughput, and the server's own share."""

import argparse
import statistics
import time
from typing import Any

from bench import report
from script.cog_server import CogServer, Json


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=128, help="side of the draft in pixels; default: 128")
    parser.add_argument("--steps", type=int, default=20, help="steps of either pass; default: 20")
    parser.add_argument("--requests", type=int, default=20, help="number of requests, one after another; default: 20")
    parser.add_argument("--price", type=float, help="price of an hour of this machine, to compute costs")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the tables. Return the seconds of each request."""
    from script.soak import fresh_server

    inputs = {"width": arguments.size, "height": arguments.size, "num_inference_steps": arguments.steps, "seed": 1}
    inputs |= {"hires_steps": arguments.steps, "hires_upscaler": "Latent", "denoising_strength": 0.6}
    with fresh_server() as (server, _):
        answer(server, inputs)
        start = time.perf_counter()
        taken = [answer(server, inputs) for _ in range(arguments.requests)]
        whole = time.perf_counter() - start
    figures = {
        "request": [seconds for seconds, _ in taken],
        "of it phases": [phases for _, phases in taken],
        "of it the rest": [seconds - phases for seconds, phases in taken],
    }
    title = f"{arguments.requests} pictures of {arguments.size} px and the highres fix, one after another"
    print(report.table(title, "s", figures, "request"))
    requests = figures["request"]
    told = {
        "p50": f"{percentile(requests, 50):.3f} s",
        "p95": f"{percentile(requests, 95):.3f} s",
        "throughput": f"{arguments.requests / whole * 60:.1f} pictures a minute",
    }
    if arguments.price is not None:
        told["cost"] = f"{arguments.price / 3600 * whole / arguments.requests * 1000:.2f} for a thousand pictures"
    print("\n" + "\n".join(f"{name:12}{value}" for name, value in told.items()))
    return figures | {"whole": [whole]}


def answer(server: CogServer, inputs: Json) -> tuple[float, float]:
    """Return the seconds of one request, and of its phases as the prediction itself measured them.

    Cog replies a moment before it is free again and refuses with 409 until then; the next request pays for that wait.
    """
    start = time.perf_counter()
    while (reply := server.predict(inputs)).status == 409:
        time.sleep(0.001)
    seconds = time.perf_counter() - start
    if reply.status != 200 or reply.body["status"] != "succeeded":
        raise RuntimeError(f"the server replied {reply}")
    return seconds, sum(reply.body["metrics"]["timing"].values())


def percentile(samples: list[float], percent: int) -> float:
    """Return a percentile, interpolated between the nearest samples."""
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]
