"""What one fitted detector of signals or records costs: time for one and for many, memory, operations, size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stages.metrics.footprint import flops, peak_memory
from stages.metrics.latency import measure

if TYPE_CHECKING:
    import torch


def costs(
    detector: torch.nn.Module, one: Callable[[], object], many: Callable[[], object], count: int,
    warmup: int, repeats: int, seconds: float, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """one, many: calls that score one and `count` of what is judged. warmup, repeats, seconds: at most so many calls, and so long, per figure."""
    import torch

    synchronise = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    single, batch = measure(one, warmup, repeats, seconds, synchronise), measure(many, 1, repeats, seconds, synchronise)
    memory = peak_memory(many)
    return {
        "latency_ms_p50": round(single.p50_ms, 3),
        "latency_ms_p95": round(single.p95_ms, 3),
        "throughput_per_s": round(1000 * count / batch.p50_ms, 1),
        "batch": count,
        "warmup": single.warmup,
        "repeats": single.repeats,
        "batch_warmup": batch.warmup,
        "batch_repeats": batch.repeats,
        "parameters": sum(tensor.numel() for tensor in [*detector.parameters(), *detector.buffers()]),
        "trainable_parameters": sum(tensor.numel() for tensor in detector.parameters()),
        "flops": flops(one),
        "peak_rss_mb": round(memory.rss_mb, 1),
        "peak_vram_mb": None if memory.vram_mb is None else round(memory.vram_mb, 1),
    }
