"""One set of names for the tensors of a CLIP, whoever wrote the checkpoint.

Four kinds of files are known by their tensors' names and turned into open_clip's names, which are also OpenAI's: checkpoints of open_clip (a training
checkpoint keeps its tensors under `state_dict`, and puts `module.` in front of them where several devices trained), OpenAI's state dict (half precision,
with three numbers beside the tensors), TinyCLIP's own (`_image_encoder.visual.`, `_text_encoder.`), and transformers' CLIPModel, which keeps the
three projections of an attention apart and stores linear projections transposed.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

NUMBERS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's files
IGNORED = ("attn_mask", "position_ids")  # buffers that older versions stored
TINYCLIP = (("_image_encoder.", ""), ("_text_encoder.", ""), ("_logit_scale.", ""))
TRANSFORMERS = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),  # so it is spelt there
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".self_attn.out_proj.", ".attn.out_proj."),
)
PROJECTION = re.compile(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)")


def canonical(content: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of any of the four kinds, float32, under open_clip's names. What is none of them is returned as it is, to be refused by name."""
    state = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    state = {name.removeprefix("module."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if name not in NUMBERS and not name.endswith(IGNORED)}
    if any(name.startswith("vision_model.") for name in state):
        state = _of_transformers(state)
    elif any(name.startswith("_image_encoder.") for name in state):
        state = {_renamed(name, TINYCLIP): value for name, value in state.items()}
    return {name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value for name, value in state.items()}


def _of_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found, apart = {}, {}
    for name, value in state.items():
        if match := PROJECTION.fullmatch(name):
            block, which, kind = match.groups()
            apart.setdefault((block, kind), {})[which] = value
        elif name in ("visual_projection.weight", "text_projection.weight"):
            found["visual.proj" if name.startswith("visual") else "text_projection"] = value.T.contiguous()
        else:
            found[_renamed(name, TRANSFORMERS)] = value
    for (block, kind), parts in apart.items():
        if set(parts) == set("qkv"):  # one that is missing is found missing when the network is filled
            found[f"{_renamed(block + '.', TRANSFORMERS)}attn.in_proj_{kind}"] = torch.cat([parts[which] for which in "qkv"])
    return found


def _renamed(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name
