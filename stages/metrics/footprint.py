"""What one call costs besides time: memory while it runs, floating-point operations."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

SAMPLED_EVERY = 0.002  # seconds


class Memory(NamedTuple):
    """The highest that was seen while the call ran, in 10^6 bytes."""

    rss_mb: float  # of the whole process, the interpreter and its libraries included
    vram_mb: float | None  # allocated by torch on the CUDA device; None without one


def peak_memory(call: Callable[[], object]) -> Memory:
    """Run `call` once and watch the process's resident memory beside it."""
    import psutil
    import torch

    process, finished = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]

    def watch() -> None:
        while not finished.wait(SAMPLED_EVERY):
            seen.append(process.memory_info().rss)

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        call()
    finally:
        finished.set()
        watcher.join()
    seen.append(process.memory_info().rss)
    vram = torch.cuda.max_memory_allocated() * 1e-6 if torch.cuda.is_available() else None
    return Memory(max(seen) * 1e-6, vram)


def machine(device: str, threads: int) -> dict[str, Any]:
    """What a figure of cost was measured on. device: "cpu" or "cuda"; threads: of the process."""
    import os
    import platform

    import torch

    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }


def flops(call: Callable[[], object]) -> int:
    """Floating-point operations of one call: convolutions, matrix products, attention and triangular solves in torch, two per multiply-add.

    What runs outside torch (ONNX Runtime, faiss) is not seen, and element-wise work is not counted: torch.utils.flop_counter.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten
    unknown = {aten.linalg_solve_triangular: _triangular, aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with FlopCounterMode(display=False, custom_mapping=unknown) as counter:
        call()
    return counter.get_total_flops()


def _triangular(matrix: Any, right: Any, *_: Any, **__: Any) -> int:
    """d (d + 1) / 2 multiply-adds for each right-hand side. Shapes (..., d, d) and (..., d, k)."""
    return math.prod(right) * (matrix[-1] + 1)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Queries times keys, then weights times values. Shapes (B, heads, T, d); torch counts the kernels for CUDA itself, and the same way."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
