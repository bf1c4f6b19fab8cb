"""The networks of metrics on a GPU: each is loaded once a process, and gives its memory back where a diffusion model needs it."""

from __future__ import annotations

import gc
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


def free_gpu(device: torch.device) -> None:
    """Free what is not in use of a device that is not the CPU; whoever uses a network of metrics again moves it back.

    The networks of metrics go to the CPU. A diffusion model that only a cycle of references holds is freed: the import of
    diffusers, within the first load of a process, leaves such a cycle.
    """
    if device.type == "cpu":
        return
    for network in _off_cpu:
        network.to("cpu")
    _off_cpu.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
