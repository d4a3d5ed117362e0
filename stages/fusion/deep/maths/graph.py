"""A fitted detector as one graph of tensors: padded tokens in, score, class logits and features out, for runtimes that know nothing of this code.

What is here is what all such graphs share; which detector has which graph is in stages/fusion/forms.py.

The graph has three inputs for each modality, "<modality>.values" (B, L, D) float32, ".time" (B, L) float32 and ".mask" (B, L) bool; B is free, L is fixed: what
a record that it was exported with has at most. Fewer tokens are padded and masked; of more, evenly spaced ones are read, as by the detector itself.

Four parts of the network are written out first, as exporters make constants of the batch size in them, or variables of what is fixed: the Transformer
layers of PyTorch, attention and its learnt queries, and the places where modalities stand in the sequence.

B records, L tokens, D width, W common width, C classes, F features, M modalities.
"""

from __future__ import annotations

import copy
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.datasets.records import Ragged, Records
from stages.fusion.deep.maths.encoder import Encoded, Padded, SensorEncoder, TokenEncoder, padded
from stages.fusion.deep.maths.fusion import Attention, Reader
from stages.fusion.deep.maths.network import Network

OPSET = 18
INPUTS = ("values", "time", "mask")
OUTPUTS = ("score", "logits", "features")
ABOUT = "assay"  # the entry of the graph's metadata


class Transformer(nn.Module):
    """What an nn.TransformerEncoder of pre-norm layers computes in evaluation mode."""

    def __init__(self, written: nn.TransformerEncoder) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(map(TransformerLayer, written.layers)), written.norm

    def forward(self, tokens: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        """(B, L, W); the mask is True where there is no token."""
        for layer in self.layers:
            tokens = layer(tokens, ~src_key_padding_mask)
        return self.norm(tokens)


class TransformerLayer(nn.Module):
    def __init__(self, written: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        own = written.self_attn
        parts = zip(own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3), strict=True)
        self.attention = Attending(
            own.num_heads, *(linear(weight, bias) for weight, bias in parts), linear(own.out_proj.weight, own.out_proj.bias)
        )
        self.norms = nn.ModuleList([written.norm1, written.norm2])
        self.feed = nn.Sequential(written.linear1, nn.GELU(), written.linear2)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        normed = self.norms[0](tokens)
        tokens = tokens + self.attention(normed, normed, mask)[0]
        return tokens + self.feed(self.norms[1](tokens))


class Attending(nn.Module):
    """What attention computes, keys and values token by token, so that every weight is a matrix.

    gate: (heads,) or (B, heads), what each head's part is multiplied by before `out`; None for 1. It is there to see what a head is worth.
    """

    def __init__(self, heads: int, query: nn.Linear, key: nn.Linear, value: nn.Linear, out: nn.Linear) -> None:
        super().__init__()
        self.heads, self.query, self.key, self.value, self.out = heads, query, key, value, out
        self.gate: Tensor | None = None

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """queries: (B, Q, W); tokens: (B, L, W); mask: (B, L) True = a token. Returns (B, Q, W) and the mean weights of the heads, (B, 1, Q, L)."""
        each, keys, values = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query(queries), self.key(tokens), self.value(tokens))
        )
        scores = (each @ keys.transpose(2, 3)) * each.shape[3] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(3)
        read = weights @ values
        if self.gate is not None:
            read = read * self.gate[..., None, None]
        return self.out(read.transpose(1, 2).flatten(2)), weights.mean(1, keepdim=True)


class Asking(nn.Module):
    """A reader whose learnt queries are laid out for each record before it is asked."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, tokens: Tensor, mask: Tensor, given: tuple[Tensor, Tensor] | None = None) -> Any:
        if given is None:
            queries = torch.where(mask[:, :1, None], self.reader.queries, self.reader.queries)  # (B, Q, F), by broadcasting alone
            given = queries, queries[:, :, 0] == queries[:, :, 0]
        return self.reader(tokens, mask, given)


class Placed(nn.Module):
    """A token encoder whose modalities stand where they stood for `example`."""

    def __init__(self, encoder: TokenEncoder, example: Mapping[str, Padded]) -> None:
        super().__init__()
        self.encoder = encoder
        with torch.no_grad():
            self.spans = encoder.eval()(example).spans

    def forward(self, tokens: Mapping[str, Padded]) -> Encoded:
        parts = zip(*(self.encoder.part(name, tokens[name]) for name in self.encoder.names), strict=True)
        values, masks, present = parts
        return Encoded(torch.cat(values, 1), torch.cat(masks, 1), torch.stack(present, 1), self.spans)


class Scorer(nn.Module, ABC):
    """The tensors of INPUTS for each modality, in the order of `widths`, to those of OUTPUTS.

    widths: the D of each modality. lengths: of each its L. The logits of a detector that tells no classes mean nothing. No weight learns, but a gradient may
    go through it. meaning: what the score is, in words.
    """

    meaning: str

    def __init__(self, widths: Mapping[str, int], lengths: Mapping[str, int]) -> None:
        super().__init__()
        if missing := sorted(set(widths) - set(lengths)):
            raise ValueError(f"lengths of {', '.join(missing)} are missing")
        self.widths, self.lengths = dict(widths), {name: int(lengths[name]) for name in widths}

    @abstractmethod
    def judge(self, tokens: dict[str, Padded]) -> tuple[Tensor, Tensor, Tensor]:
        """Score (B,), logits (B, C), features (B, F)."""

    @property
    def inputs(self) -> list[str]:
        return [f"{name}.{part}" for name in self.widths for part in INPUTS]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.judge({name: Padded(*tensors[3 * place : 3 * place + 3]) for place, name in enumerate(self.widths)})

    def example(self, count: int = 2) -> tuple[Tensor, ...]:
        """Records that lack nothing, all zeros."""
        return tuple(tensor for name in self.widths for tensor in self._blank(name, count))

    def fed(self, records: Records) -> list[Tensor]:
        """Records as `forward` takes them."""
        return [torch.from_numpy(one) for one in feed(records, self.widths, self.lengths).values()]

    def written_out(self, network: Network) -> Network:
        """A copy of a network of this detector that exporters understand."""
        made = _written_out(copy.deepcopy(network).cpu()).requires_grad_(False)
        made.encoder = Placed(made.encoder, {name: self._blank(name, 1) for name in made.encoder.names})
        return made

    def _blank(self, name: str, count: int) -> Padded:
        length = self.lengths[name]
        return Padded(
            torch.zeros(count, length, self.widths[name]), torch.zeros(count, length), torch.ones(count, length, dtype=torch.bool)
        )


def feed(records: Records, widths: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The inputs of a graph for some records, in any order of modalities; a modality that they lack is masked. sizes: of each modality its L."""
    found: dict[str, np.ndarray] = {}
    for name, width in widths.items():
        given = records.tokens.get(name)
        if given is None or not len(given.values):
            given = Ragged(torch.zeros(0, width), torch.zeros(0), torch.zeros(records.samples + 1, dtype=torch.int64))
        part = padded(given, sizes[name])
        short = sizes[name] - part.mask.shape[1]
        whole = F.pad(part.values, (0, 0, 0, short)), F.pad(part.time, (0, short)), F.pad(part.mask, (0, short))
        found |= {f"{name}.{kind}": tensor.numpy() for kind, tensor in zip(INPUTS, whole, strict=True)}
    return found


def program(made: Scorer) -> torch.export.ExportedProgram:
    """The graph of torch.export, with a free batch size."""
    free = torch.export.Dim("B", min=1, max=2**16)
    with torch.no_grad():
        return torch.export.export(made, made.example(), dynamic_shapes=(tuple({0: free} for _ in made.inputs),), strict=False)


def exporter() -> str:
    """"dynamo", from the graph of torch.export, where the package onnxscript is installed; else "tracing"."""  # fmt: skip
    return "dynamo" if find_spec("onnxscript") else "tracing"


def onnx_bytes(made: Scorer, about: Mapping[str, Any], kind: str | None = None) -> bytes:
    """The graph as an ONNX file that carries `about` (JSON) in its metadata. kind: of `exporter`."""
    import onnx

    file = BytesIO()
    with warnings.catch_warnings():
        # The tracing exporter announces its retirement at each call, and tracing warns of sizes that are constant on purpose.
        warnings.simplefilter("ignore")
        if (kind or exporter()) == "dynamo":
            made_of = program(made)
            done = torch.onnx.export(
                made_of, dynamo=True, opset_version=OPSET, input_names=made.inputs, output_names=list(OUTPUTS), verbose=False
            )
            model = done.model_proto
        else:
            free = {name: {0: "B"} for name in (*made.inputs, *OUTPUTS)}
            torch.onnx.export(
                made, made.example(), file, dynamo=False, opset_version=OPSET, input_names=made.inputs, output_names=list(OUTPUTS), dynamic_axes=free
            )  # fmt: skip
            model = onnx.load_from_string(file.getvalue())
    return described(_with_all_inputs(model, made), about)


def _with_all_inputs(model: Any, made: Scorer) -> Any:
    """Exporters leave out what a graph does not look at, such as the times of a model that takes means; whoever feeds it need not know."""
    import onnx

    given = {one.name: one for one in model.graph.input}
    examples = zip(made.inputs, made.example(), strict=True)
    kind = {torch.float32: onnx.TensorProto.FLOAT, torch.bool: onnx.TensorProto.BOOL}
    every = [given.get(name) or onnx.helper.make_tensor_value_info(name, kind[one.dtype], ["B", *one.shape[1:]]) for name, one in examples]
    every = [onnx.ValueInfoProto.FromString(one.SerializeToString()) for one in every]
    del model.graph.input[:]
    model.graph.input.extend(every)
    return model


def described(model: Any, about: Mapping[str, Any]) -> bytes:
    """An ONNX model with `about` as the one entry of its metadata."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = ABOUT, json.dumps(about, sort_keys=True)
    return model.SerializeToString(deterministic=True)


def int8_bytes(exported: bytes, about: Mapping[str, Any]) -> bytes:
    """The same graph with the weights of its matrix products as 8-bit integers, one scale a column; activations are rounded as they come."""
    import logging
    import tempfile
    from pathlib import Path

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().disabled, before = True, logging.getLogger().disabled  # it advises a step that fixed shapes make needless
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "int8.onnx")
            quantize_dynamic(
                onnx.load_from_string(exported),
                path,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
            return described(onnx.load(path), about)
    finally:
        logging.getLogger().disabled = before


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer of copies of these."""
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight, made.bias = (nn.Parameter(one.detach().clone(memory_format=torch.contiguous_format)) for one in (weight, bias))
    return made


def _attending(written: Attention) -> Attending:
    return Attending(written.heads, written.query, written.key, written.value, written.out)


def _written_out(network: nn.Module) -> nn.Module:
    """The network with those parts replaced, in place."""
    for module in list(network.modules()):
        if isinstance(module, SensorEncoder):
            module.layers = Transformer(module.layers)
        for name, child in list(module.named_children()):
            if isinstance(child, Reader | Attention):
                made = Asking(child) if isinstance(child, Reader) else _attending(child)
                module.register_module(name, made)
    return network
