"""The networks of metrics on a GPU: each is loaded once a process, and gives its memory back where a diffusion model needs it."""

from __future__ import annotations

from typing import TypeVar
from weakref import WeakSet

import torch

Network = TypeVar("Network", bound=torch.nn.Module)

_off_cpu: WeakSet[torch.nn.Module] = WeakSet()


def move(network: Network, device: torch.device) -> Network:
    """The network on a device, where it stays until `free_gpu`."""
    if device.type != "cpu":
        _off_cpu.add(network)
    return network.to(device)


def free_gpu() -> None:
    """Move every network of metrics to the CPU; whoever uses it again moves it back."""
    if not _off_cpu:
        return
    for network in _off_cpu:
        network.to("cpu")
    _off_cpu.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
