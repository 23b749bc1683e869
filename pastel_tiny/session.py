"""A training phase in progress: one network, and what a checkpoint must contain to continue."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from pastel_tiny.networks import Average, here
from pastel_tiny.progress import load, rate, save

Network = TypeVar("Network", bound=nn.Module)


@dataclass
class Session(Generic[Network]):
    """The network, its moving average and optimizer, the steps of the whole phase, and those that are done."""

    network: Network
    average: Average
    optimizer: torch.optim.Optimizer
    steps: int
    step: int = 0

    @property
    def done(self) -> float:
        """Return the share of the phase that is over."""
        return min(1.0, self.step / max(1, self.steps))

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {"network": self.network.state_dict(), "average": self.average.weights}
        save(path, state | {"optimizer": self.optimizer.state_dict(), "step": self.step})

    def descend(self, loss: Tensor, peak: float) -> None:
        """Take one optimizer step; the learning rate falls from its peak with the share that is done."""
        self.optimizer.param_groups[0]["lr"] = rate(peak, self.done, self.step, 100)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.network)
        self.step += 1


def resume(
    path: Path,
    network: Network,
    optimizer: torch.optim.Optimizer,
    steps: int,
    start: Mapping[str, Tensor] | None = None,
) -> Session[Network]:
    """Continue a phase from its checkpoint; without one, begin with the weights `start`, if there are any."""
    state = load(path)
    if state is None:
        if start is not None:
            network.load_state_dict(start)
        return Session(network, Average(network, 0.998), optimizer, steps)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    run = Session(network, Average(network, 0.998), optimizer, steps, state["step"])
    run.average.weights = {name: here(value) for name, value in state["average"].items()}
    run.average.steps = state["step"]
    return run
