"""Training works on any default device of torch: on the meta device, a tensor left on the host is an error."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from pastel_tiny import networks, text, unet, vae
from pastel_tiny.session import Session
from pipelines.ask.identity import TOKENIZER


@pytest.fixture
def meta() -> Iterator[None]:
    torch.set_default_device("meta")
    with (
        mock.patch.object(torch.nn.utils, "clip_grad_norm_"),  # it looks at values
        mock.patch.object(torch, "autocast", return_value=nullcontext()),  # which the meta device has none of
    ):
        yield
    torch.set_default_device(None)


def the_loss_is_read_back() -> AbstractContextManager[object]:
    """At the end of a step."""
    return pytest.raises((RuntimeError, NotImplementedError), match="meta tensor")


def session(network: torch.nn.Module) -> Session[torch.nn.Module]:
    optimizer = torch.optim.AdamW(network.parameters(), foreach=False)
    return Session(network, networks.Average(network, 0.998), optimizer, 1)


@pytest.mark.usefixtures("meta")
def test_the_autoencoder() -> None:
    run, pictures = session(networks.build_vae()), np.zeros((2, 128, 128, 3), np.uint8)
    batch = vae.crops(pictures, pictures, np.random.default_rng(0), times=2)
    assert batch.shape == (2, 3, 128, 128)
    spikes, calm = vae.Spikes(run.network), vae.Calm(networks.build_vae(), torch.ones(4))  # type: ignore[arg-type]
    with the_loss_is_read_back():
        vae.step(run, batch, "better", spikes)  # type: ignore[arg-type]
    with the_loss_is_read_back():
        vae.step(run, batch, "calm", spikes, calm)  # type: ignore[arg-type]
    assert run.step == 2


@pytest.mark.usefixtures("meta")
def test_the_unet(tmp_path: Path) -> None:
    source = unet.Source.__new__(unet.Source)  # without the folders that it reads
    source.rng, source.times = unet.random.Random(0), 2
    source.blanks = torch.zeros(3, 77, networks.TEXT_WIDTH, device="cpu")
    latents = torch.zeros(5, 4, 20, 20, device="cpu").half()
    source.ready = {"square0": (latents, torch.zeros(5, 3, 77, networks.TEXT_WIDTH, device="cpu"))}
    run, batch = session(networks.build_unet()), source.batch(0.0)
    assert batch.latents.shape == (48, 4, 20, 20)
    with the_loss_is_read_back():
        unet.step(run, batch)  # type: ignore[arg-type]
    assert run.step == 1


@pytest.mark.usefixtures("meta")
def test_the_text_encoder(tmp_path: Path) -> None:
    with mock.patch.object(networks.Average, "update") as updated, the_loss_is_read_back():
        text.train(tmp_path, TOKENIZER, 1)
    updated.assert_called_once()
