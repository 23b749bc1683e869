"""Upscaling networks of the ESRGAN family, loaded with spandrel: a picture -> a larger one.

Pictures are processed in tiles of 192 pixels that overlap by 8 and are blended, as with WebUI's defaults. So memory
does not grow with the picture.
"""

import hashlib
import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines.errors import ModelError, in_one_line, shown
from pipelines.files.headers import Stored
from pipelines.models.checkpoint import (
    UPSCALER,
    check_finite,
    check_plain,
    content_of,
    kind_of,
    mapped,
    no_larger_than,
)
from pipelines.runtime.isolation import Failed, Helper, Limits
from pipelines.runtime.worker import stop_if_asked

TILE, OVERLAP = 192, 8
"""The side of a tile in pixels before it is enlarged, and how many pixels neighbouring tiles share."""
SCALE_MAX = 8
"""The largest factor. A tile that is enlarged 16 times takes gigabytes in every layer."""
TENSORS_MAX = 5000
"""Limit for an upscaler's file. The largest known networks have 2,500 tensors."""
NUMBER_MAX = 1000
"""Limit for the numbers of layers and blocks in the names of an upscaler's tensors."""
PURPOSES = ("SR", "Restoration")
"""Accepted purposes, in spandrel's words: to enlarge a picture, or to clean it without changing its size."""
WRAPPERS = (
    "params_ema", "params-ema", "params", "generator_ema", "g_ema", "generator", "net_g", "netG", "model_g", "ema",
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights",
)  # fmt: skip
"""Names under which trainers store the network's tensors, next to other data, with the best first."""
OWN_NAMES = ("model", "net", "network", "module", "netG")
"""Those of them that networks' own tensor names begin with, or that spandrel removes itself."""
WRAPPED_MAX = 6


class NetworkUpscaler:
    """A loaded network. It enlarges pictures by its own integer factor."""

    def __init__(self, descriptor: Any, scale: int) -> None:  # spandrel is not importable everywhere
        self.descriptor, self.scale = descriptor, scale

    def enlarge(self, picture: Image.Image) -> Image.Image:
        """Enlarge an RGB picture to `scale` times its size."""
        columns, rows = _starts(picture.width), _starts(picture.height)
        whole = Image.new("RGB", (picture.width * self.scale, picture.height * self.scale))
        for y in rows:
            strip = Image.new("RGB", (whole.width, TILE * self.scale))
            for x in columns:
                stop_if_asked()
                strip.paste(self._tile(picture, x, y), (x * self.scale, 0), self._fade(TILE, x > 0))
            whole.paste(strip, (0, y * self.scale), self._fade(picture.width, y > 0, down=True))
        return whole

    @torch.inference_mode()
    def _tile(self, picture: Image.Image, x: int, y: int) -> Image.Image:
        """Enlarge one tile. Beyond the picture's edge the tile is black."""
        # WebUI passes the channels as blue, green, red, as the first ESRGAN was trained
        pixels = np.asarray(picture.crop((x, y, x + TILE, y + TILE)))[:, :, ::-1].astype(np.float32) / 255
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self.descriptor.device, self.descriptor.dtype)
        output = self.descriptor(batch)[0].float().clamp(0, 1).mul(255).round().byte()
        return Image.fromarray(np.ascontiguousarray(output.permute(1, 2, 0).cpu().numpy()[:, :, ::-1]))

    def _fade(self, width: int, over_another: bool, down: bool = False) -> Image.Image:
        """Return the mask that blends a tile, or a strip of tiles `width` wide, over its left (or upper) neighbour."""
        length, across = TILE * self.scale, width * self.scale
        ramp = np.full(length, 255, np.float32)
        if over_another:
            overlap = OVERLAP * self.scale
            ramp[:overlap] = np.arange(overlap) * 255 / overlap
        mask = np.broadcast_to(ramp.astype(np.uint8), (across, length))
        return Image.fromarray(np.ascontiguousarray(mask.T if down else mask))


def _starts(side: int) -> list[int]:
    """Return where tiles begin along a side, evenly spaced. If the side is shorter than a tile, it begins before 0."""
    count = max(1, math.ceil((side - OVERLAP) / (TILE - OVERLAP)))
    if count == 1:
        return [min(0, side - TILE)]
    return [min(int(k * (side - TILE) / (count - 1)), side - TILE) for k in range(count)]


@contextmanager
def torchvision_or_a_stand_in() -> Iterator[None]:
    """Provide the three names of torchvision that spandrel imports, while the context lasts.

    spandrel needs them for two architectures that are not upscalers (LaMa, RestoreFormer). torchvision's wheels fit
    only some builds of torch, and it is not needed here. If it cannot be imported, empty modules take its place until
    spandrel is imported.
    """
    try:
        import torchvision.transforms.functional  # noqa: F401
    except (ImportError, RuntimeError):  # RuntimeError if it was built for another torch
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
        modules = {name: ModuleType(name) for name in names}
        vars(modules[names[-1]]).update(dict.fromkeys(("InterpolationMode", "rotate", "normalize")))
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name in names:
                del sys.modules[name]
    else:
        yield


def import_spandrel() -> Any:
    """Import spandrel only when needed: it is large and rarely used. Raises ImportError."""
    with torchvision_or_a_stand_in():
        import spandrel

    return spandrel


class Trials:
    """Tests untrusted upscalers in a separate process (trial.py), and remembers by hash those that passed.

    A file determines such a network in many ways: by shapes, counts, numbers in names, and values. A malicious file can
    ask for all memory or for hours of computing, or read beyond a table, which destroys a GPU's context.
    """

    def __init__(self) -> None:
        self._passed: set[str] = set()

    def check(self, path: Path) -> None:
        """Raise ModelError for an upscaler that cannot be built and run within the limits."""
        _named_tensors(path)  # checking the names needs no separate process
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            if sha256 in self._passed:
                return
            limits = Limits(memory=3 * path.stat().st_size + (300 << 20), processor=20, seconds=60)
            helper = Helper("pipelines.upscalers.trial")  # it needs 200 MB, so it is stopped after one job
            try:
                wrong, output = helper.run("trial", stream, limits, path=str(path))
            except Failed as failed:
                raise ModelError(f"{path.name}: not an upscaler that can be read ({failed}).") from failed
            finally:
                helper.stop()
        output.close()
        if wrong:
            raise ModelError(wrong)
        self._passed.add(sha256)


def _named_tensors(path: Path) -> dict[str, Stored]:
    """Return the tensors of an upscaler's file by the names that spandrel knows. Raises ModelError.

    spandrel loops over the numbers in names and takes sizes from empty tensors, so both are checked here.
    """
    try:
        content = import_spandrel().canonicalize_state_dict(_unwrapped(content_of(path)))
        stored = {name: each for name, each in content.items() if isinstance(each, Stored)}
    except ImportError as error:
        raise ModelError(
            f"{path.name}: upscalers of this kind need the package spandrel, which does not import here ({error}). "
            "Install requirements-upscalers.txt, or choose another hires_upscaler."
        ) from error
    except Exception as error:  # for keys that are not strings, and our own errors
        raise ModelError(_unreadable(path, error)) from error
    kind = kind_of(stored)
    numbers = (int(number) for name in stored for number in re.findall(r"\d+", name))
    wrong = {
        f"it is {kind.what if kind else ''}": kind not in (None, UPSCALER),
        "it holds no tensors, or holds them in an unknown way": not stored,
        f"it holds {len(stored)} tensors": len(stored) > TENSORS_MAX,
        "one of its tensors is empty": any(0 in each.shape for each in stored.values()),
        "a number in its tensors' names is too large": any(number > NUMBER_MAX for number in numbers),
        "it is quantised": any(each.kind in ("I8", "U8") and len(each.shape) > 1 for each in stored.values()),
    }
    for reason in (reason for reason, holds in wrong.items() if holds):
        raise ModelError(f"{path.name}: not an upscaler that can be read ({reason}).")
    return stored


def _unreadable(path: Path, error: Exception) -> str:
    said = in_one_line(error).removeprefix(f"{shown(str(path))}: ").removesuffix(".")  # the path as errors show it
    if "can't allocate memory" in said:
        said = "it needs more memory than its limit"
    return f"{path.name}: not an upscaler that can be read ({said})."


def _unwrapped(content: Any) -> Any:
    """Remove the levels that trainers add. Return the tensors by the network's own names."""
    for _ in range(WRAPPED_MAX):
        if not isinstance(content, Mapping):
            break
        groups = {name: group for name, group in content.items() if isinstance(group, dict) and group}
        inner = next((groups[name] for name in WRAPPERS if name in groups), None)
        if inner is None and len(groups) == 1 and not any(isinstance(each, Stored) for each in content.values()):
            (inner,) = groups.values()
        if inner is None:
            return _without_prefix(content)
        content = inner
    return content


def _without_prefix(tensors: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Remove a trainer's prefix if all names begin with it."""
    for prefix in (f"{name}." for name in WRAPPERS if name not in OWN_NAMES):
        if tensors and all(isinstance(name, str) and name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def load_esrgan(path: Path, place: torch.device, dtype: torch.dtype) -> NetworkUpscaler:
    """Load an upscaler. Raises ModelError if the file is not one, if it is for other pictures, or without spandrel."""
    stored = _named_tensors(path)
    spandrel = import_spandrel()
    try:
        weights = mapped(path, stored)
        check_plain(path, weights)
        weights = {name: _computable(tensor) for name, tensor in weights.items()}
        with no_larger_than(weights.values()):
            descriptor = spandrel.ModelLoader(device=place).load_from_state_dict(weights)
    except Exception as error:  # spandrel and torch raise a dozen kinds
        raise ModelError(_unreadable(path, error)) from error
    check_finite(path.name, descriptor.model.state_dict())
    if not isinstance(descriptor, spandrel.ImageModelDescriptor) or descriptor.purpose not in PURPOSES:
        raise ModelError(f"{path.name}: a {descriptor.architecture.name} network, which does not enlarge pictures.")
    if (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        raise ModelError(f"{path.name}: made for pictures with {descriptor.input_channels} channels instead of 3.")
    if descriptor.scale > SCALE_MAX:
        raise ModelError(f"{path.name}: enlarges {descriptor.scale} times; at most {SCALE_MAX} times is supported.")
    wanted = dtype if dtype == torch.float32 or descriptor.supports_half else torch.float32
    return NetworkUpscaler(descriptor.to(place, wanted).eval(), descriptor.scale)


def _computable(tensor: torch.Tensor) -> torch.Tensor:
    """Convert 8-bit floats to half precision, because spandrel computes with some to find a network's sizes."""
    return tensor.half() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
