"""The kind `sentences`: a note through a frozen sentence-transformer (all-MiniLM-L6-v2 by default).

`pool: mean` (as Reimers and Gurevych, arXiv:1908.10084, and the built-in weights: mean of the tokens that are no padding, then unit length) or
`cls` gives one token a note, `tokens` one for each word piece. A note that is longer than the network takes is cut at the end.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages import io
from stages.datasets.media import read_text
from stages.datasets.records import Tokens
from stages.encoders.encoder import versions
from stages.encoders.media import pretrained
from stages.encoders.media.encoder import Place, TokenEncoder, at_moments

AT_ONCE = 32  # notes in one pass, the longest together


def build(
    place: Place,
    *,
    weights: str = "all-MiniLM-L6-v2",
    pool: Literal["mean", "cls", "tokens"] = "mean",
    unit_length: bool = True,
    max_pieces: Annotated[int | None, Field(ge=4)] = None,
) -> TokenEncoder:
    """weights: a folder in backbones/, or the name of a package's. max_pieces: of a note; what the folder says by default."""
    folder = pretrained.find(weights, f"sentence-transformers/{weights}", place.backbones)
    network, tokenizer = pretrained.load(folder).to(place.device), pretrained.part(folder, "AutoTokenizer")
    longest = max_pieces or _longest(folder, tokenizer)

    @torch.no_grad()
    def encode(notes: Any) -> list[Tokens]:
        found: dict[int, Tokens] = {}
        order = sorted(range(len(notes)), key=lambda place: len(notes[place]))
        for start in range(0, len(order), AT_ONCE):
            places = order[start : start + AT_ONCE]
            batch = tokenizer([notes[one] for one in places], padding=True, truncation=True, max_length=longest, return_tensors="pt")
            states = network(**batch.to(place.device)).last_hidden_state.float().cpu()  # (B, L, D)
            found |= dict(zip(places, _pooled(states, batch["attention_mask"].cpu(), pool, unit_length), strict=True))
        return [found[one] for one in range(len(notes))]

    identity = {"weights": folder.identity, "max_pieces": longest, "versions": versions("torch", "transformers", "tokenizers")}
    return TokenEncoder("text", network.config.hidden_size, read_text, encode, identity)


def _longest(folder: pretrained.Folder, tokenizer: Any) -> int:
    """The pieces that the network was made for."""
    path = folder.path / "sentence_bert_config.json"
    said = io.read_json(path).get("max_seq_length") if path.is_file() else None
    return said or min(tokenizer.model_max_length, 512)


def _pooled(states: Tensor, mask: Tensor, pool: str, unit_length: bool) -> list[Tokens]:
    """states: (B, L, D); mask: (B, L), 1 where a piece is."""
    if pool == "mean":
        rows = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        values = [row[None] for row in rows]
    elif pool == "cls":
        values = [state[keep.bool()][:1] for state, keep in zip(states, mask, strict=True)]
    else:
        values = [state[keep.bool()] for state, keep in zip(states, mask, strict=True)]
    return [at_moments(F.normalize(one, dim=1) if unit_length else one, range(len(one))) for one in values]
