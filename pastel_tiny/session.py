"""A training phase in progress: one network, and what a checkpoint must contain to continue."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from pastel_tiny.networks import Average, here
from pastel_tiny.progress import Clock, load, save

Network = TypeVar("Network", bound=nn.Module)


@dataclass
class Session(Generic[Network]):
    """The network, its moving average and optimizer, the phase's clock, and the completed steps."""

    network: Network
    average: Average
    optimizer: torch.optim.Optimizer
    clock: Clock
    step: int

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {"network": self.network.state_dict(), "average": self.average.weights}
        save(path, state | {"optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.clock.elapsed})

    def descend(self, loss: Tensor, peak: float) -> None:
        """Take one optimizer step, with the peak learning rate scaled by the clock."""
        self.optimizer.param_groups[0]["lr"] = self.clock.rate(peak, self.step)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.network)
        self.step += 1


def resume(path: Path, network: Network, optimizer: torch.optim.Optimizer, minutes: float) -> Session[Network]:
    """Start a phase, or continue from its checkpoint."""
    average, state = Average(network, 0.998), load(path)
    if state is None:
        return Session(network, average, optimizer, Clock(minutes), 0)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    average.weights = {name: here(value) for name, value in state["average"].items()}
    average.steps = state["step"]
    return Session(network, average, optimizer, Clock(minutes, state["seconds"]), state["step"])
