"""Eager torch beside ONNX Runtime on one frozen encoder, interleaved in one run on one machine: read the ratio, not the milliseconds.

    python -m benchmarks.encoders --batch 16
    python -m benchmarks.encoders --backbone wide_resnet50_2 --weights random --batch 4
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from stages.encoders.encoder import Encoder
from stages.params import EncoderEntry


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    encoders = {runtime: _encoder(arguments, runtime) for runtime in ("torch", "onnxruntime")}
    shape = (arguments.batch, 3, arguments.image_size, arguments.image_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = {runtime: encoder.encode(pixels) for runtime, encoder in encoders.items()}  # warms both up
    seconds: dict[str, list[float]] = {runtime: [] for runtime in encoders}
    for _ in range(arguments.repeats):
        for runtime, encoder in encoders.items():
            started = time.perf_counter()
            encoder.encode(pixels)
            seconds[runtime].append(time.perf_counter() - started)
    median = {runtime: statistics.median(values) for runtime, values in seconds.items()}
    for runtime, value in median.items():
        print(f"{arguments.backbone} {runtime}: {1000 * value / arguments.batch:.1f} ms an image (batch {arguments.batch})")
    print(f"onnxruntime is {median['torch'] / median['onnxruntime']:.2f} times as fast")
    for layer, eager in features["torch"].items():
        difference = (features["onnxruntime"][layer] - eager).abs().max() / eager.abs().max()
        print(f"{layer} {tuple(eager.shape[1:])}: largest difference {difference:.1e} of the largest value")


def _encoder(arguments: argparse.Namespace, runtime: str) -> Encoder:
    options = {"backbone": arguments.backbone, "weights": arguments.weights, "layers": arguments.layers, "runtime": runtime}
    entry = EncoderEntry(kind="cnn", image_size=arguments.image_size, **options)
    return Encoder.from_entry("benchmark", entry, "cpu", arguments.threads, Path(arguments.backbones))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="efficientnet-lite0")
    parser.add_argument("--layers", nargs="+", default=["layer1", "layer2", "layer3"])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backbones", default="backbones")
    return parser.parse_args()


if __name__ == "__main__":
    main()
