"""Real architectures at small size, with random weights, saved as the folders that users bring."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the seam of weld is porous and good crack near edge . <|startoftext|> <|endoftext|>".split()


def bert(folder: Path) -> Path:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, initializer_range=0.3
    )
    return _saved(BertModel, config, folder, _tokenizer)


def dinov2(folder: Path) -> Path:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14, num_register_tokens=2, drop_path_rate=0.2
    )
    said = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "crop_size": {"height": 56, "width": 56}}
    return _saved(Dinov2WithRegistersModel, config, folder, _says("preprocessor_config.json", said))


def clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "attention_dropout": 0.3}
    ends = {"bos_token_id": len(WORDS) - 2, "eos_token_id": len(WORDS) - 1, "pad_token_id": 0}
    text = CLIPTextConfig(vocab_size=len(WORDS), max_position_embeddings=16, **ends, **shared)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **shared)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    return _saved(CLIPModel, config, folder, _clip_tokenizer)


def vjepa2(folder: Path) -> Path:
    from transformers import VJEPA2Config, VJEPA2Model

    config = VJEPA2Config(
        patch_size=8, crop_size=32, frames_per_clip=4, hidden_size=48, num_attention_heads=2, num_hidden_layers=2, mlp_ratio=2.0,
        pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1, pred_num_mask_tokens=2, drop_path_rate=0.2,
    )  # fmt: skip
    return _saved(VJEPA2Model, config, folder, _says("video_preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))


def ast(folder: Path) -> Path:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    config = ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_length=64,
        num_mel_bins=32,
        hidden_dropout_prob=0.3,
    )
    return _saved(ASTModel, config, folder, lambda place: ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(place))


def wav2vec2(folder: Path) -> Path:
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, conv_dim=(16,) * 7, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, hidden_dropout=0.3,
    )  # fmt: skip
    return _saved(Wav2Vec2Model, config, folder, lambda place: Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(place))


def _saved(kind, config, folder: Path, beside) -> Path:
    from stages.encoders.media.pretrained import library

    library()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    beside(folder)
    return folder


def _says(name: str, content: dict):
    return lambda folder: (folder / name).write_text(json.dumps(content))


def _tokenizer(folder: Path) -> None:
    from transformers import BertTokenizerFast

    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)


def _clip_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = len(WORDS) - 2, len(WORDS) - 1
    words.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", start), ("<|endoftext|>", end)]
    )
    kept = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=WORDS[start], eos_token=WORDS[end], pad_token="[PAD]", unk_token="[UNK]"
    )
    kept.save_pretrained(folder)
