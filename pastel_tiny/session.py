"""A phase in progress: one network on its way, and what a checkpoint must hold to go on."""

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
    """The network, its moving average and optimizer, the phase's clock, and the steps done."""

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
        """One step of the optimizer down the loss, at the clock's share of the peak learning rate."""
        self.optimizer.param_groups[0]["lr"] = self.clock.rate(peak, self.step)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.network)
        self.step += 1


def resume(path: Path, network: Network, optimizer: torch.optim.Optimizer, minutes: float) -> Session[Network]:
    """Begin a phase, or take it up where its checkpoint was."""
    average, state = Average(network, 0.998), load(path)
    if state is None:
        return Session(network, average, optimizer, Clock(minutes), 0)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    average.weights = {name: here(value) for name, value in state["average"].items()}
    average.steps = state["step"]
    return Session(network, average, optimizer, Clock(minutes, state["seconds"]), state["step"])
