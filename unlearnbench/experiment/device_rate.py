"""How fast a device computes what sampling consists of, timed in two seconds."""

from __future__ import annotations

import time
from functools import cache

import torch
import torch.nn.functional as F

SECONDS = 2.0
CHANNELS, SIDE, WIDTH, HEADS = 320, 64, 1280, 8  # of Stable Diffusion's first blocks
TOKENS = 1024


@cache
def device_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second, in units of 10^12: a convolution, a linear layer, attention and norms as in a UNet, for two seconds.

    Args:
        device: where they run.
        dtype: in which precision.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    images, kernel, weight = draw(2, CHANNELS, SIDE, SIDE), draw(CHANNELS, CHANNELS, 3, 3) / 50, draw(WIDTH, CHANNELS) / 20
    query = draw(2, HEADS, TOKENS, CHANNELS // HEADS)
    operations = 2 * 2 * SIDE**2 * CHANNELS * (9 * CHANNELS + WIDTH) + 2 * 2 * 2 * HEADS * TOKENS**2 * (CHANNELS // HEADS)

    @torch.no_grad()
    def work() -> None:
        hidden = F.conv2d(F.silu(F.group_norm(images, 32)), kernel, padding=1)
        F.linear(hidden.flatten(2).transpose(1, 2), weight)
        total = F.scaled_dot_product_attention(query, query, query).sum()
        if device.type != "cpu":
            total.item()  # waits for the device

    work()
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < SECONDS or count == 0:
        work()
        count += 1
    return operations * count / elapsed / 1e12
