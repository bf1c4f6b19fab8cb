"""The training loop of the recipes: resumable, with a moving average, a recorded graph on a GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from unlearnbench.config.errors import RunError
from unlearnbench.console import progress_bar
from unlearnbench.storage.training_state import load_training_state, save_training_state

Batch = tuple[Tensor, ...]
EVERY = 60.0  # seconds between two checkpoints


def fit(
    name: str,
    work: Path,
    module: nn.Module,
    draw: Callable[[torch.Generator], Batch],
    loss: Callable[..., Tensor],
    steps: int,
    lr: float,
    decay: float = 0.999,
    horizon: int = 0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """AdamW with a one-cycle schedule and an exponential moving average; returns the averaged parameters.

    Once a minute the state is saved to `work`/<name>.checkpoint.safetensors, from which an interrupted call resumes. A state
    whose loss is not finite is never saved.

    Args:
        name: the name of the stage, for its checkpoint and the progress bar.
        work: the folder of checkpoints.
        module: the trained module.
        draw: returns a batch, tensors on the CPU.
        loss: from a batch to a scalar.
        steps: how many steps.
        lr: the peak learning rate.
        decay: of the moving average.
        horizon: the learning rate falls as a cosine over so many steps; by default `steps`.
        seed: of the batches.

    Raises:
        RunError: the loss is NaN or infinite.
    """
    parameters = dict(module.named_parameters())
    device = next(iter(parameters.values())).device
    average = {key: value.detach().clone() for key, value in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr, weight_decay=1e-3, fused=device.type == "cuda" or None)
    generator = torch.Generator().manual_seed(seed)
    path = work / f"{name}.checkpoint.safetensors"
    state = {**parameters, **{f"average.{k}": v for k, v in average.items()}}
    saved = load_training_state(path, state, optimizer, generator)
    first = int(saved[0]["step"]) if saved else 0
    backward = (_recorded if device.type == "cuda" else _plain)(loss, list(parameters.values()))
    saved_at = time.monotonic()
    with progress_bar(f"train {name}", steps, first) as shown:
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(step, lr, horizon or steps)
            value = backward(draw(generator))
            optimizer.step()
            with torch.no_grad():
                rate = min(decay, (step + 1) / (step + 10))
                torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - rate)
            is_saved = step + 1 == steps or time.monotonic() - saved_at > EVERY
            remark = f"loss {_finite(value, name, step + 1):.4f}" if step % 25 == 0 or is_saved else None  # waits for the GPU
            if is_saved:
                save_training_state(path, state, optimizer, generator, {"step": step + 1})
                saved_at = time.monotonic()
            shown.advance(remark=remark)
    return average


def _learning_rate(step: int, peak: float, horizon: int) -> float:
    """The learning rate rises over a twentieth of the horizon, and falls to a hundredth of its peak as a cosine."""
    warm = min(1.0, (step + 1) / (0.05 * horizon))
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / horizon)))


def _finite(loss: Tensor, name: str, step: int) -> float:
    """The loss as a number.

    Raises:
        RunError: it is NaN or infinite.
    """
    number = float(loss)
    if not math.isfinite(number):
        raise RunError(f"train {name}: the loss became {number} by step {step}")
    return number


def _plain(loss: Callable[..., Tensor], parameters: Sequence[nn.Parameter]) -> Callable[[Batch], Tensor]:
    """A function that computes the gradients for a batch, clipped to norm 1, and returns the loss."""

    def backward(batch: Batch) -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        value = loss(*batch)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        return value.detach()

    return backward


def _recorded(loss: Callable[..., Tensor], parameters: Sequence[nn.Parameter]) -> Callable[[Batch], Tensor]:
    """The same on a GPU, as a CUDA graph captured at the first batch: a model this small is otherwise limited by Python."""
    device, plain, graph = parameters[0].device, _plain(loss, parameters), torch.cuda.CUDAGraph()
    static: Batch = ()
    value = torch.empty(0)

    def backward(batch: Batch) -> Tensor:
        nonlocal static, value
        if not static:
            static = tuple(x.to(device) for x in batch)
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(3):
                    plain(static)
            torch.cuda.current_stream(device).wait_stream(stream)
            with torch.cuda.graph(graph):
                value = plain(static)
        for buffer, x in zip(static, batch, strict=True):
            buffer.copy_(x.pin_memory(), non_blocking=True)
        graph.replay()
        return value

    return backward


def average_into(module: nn.Module, average: dict[str, Tensor]) -> nn.Module:
    """Give the module its averaged parameters, and make it ready to be used."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(average[name])
    return module.eval().requires_grad_(False)
