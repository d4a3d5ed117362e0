"""The model of raw media: the seed's shapes, the same function as on stored tokens, few parameters that learn, and no look at what is not there."""

import math

import numpy as np
import pytest
import torch

from stages.datasets.records import Ragged, Records
from stages.fusion.deep.cross_attention import CrossAttention
from stages.fusion.deep.maths.backbones import AudioEncoder, ImageEncoder, VideoEncoder, encoders, parameters
from stages.fusion.deep.maths.encoder import Encoding
from stages.fusion.deep.maths.sota_model import SPELT, QuadModalSOTAModel, WrongBatch
from stages.fusion.deep.maths.supcon import SupConLoss

SMALL = {"encoding": Encoding(width=32, heads=4, sensor_layers=1, sensor_ffn=32, max_tokens=64), "features": 48}
CLASSES = ["normal", *(f"fault_{number:02d}" for number in range(11))]


def batch(records: int = 3) -> dict:
    draw = torch.Generator().manual_seed(0)
    return {
        "video": torch.rand(records, 8, 1, 32, 32, generator=draw),
        "post_images": torch.rand(records, 5, 3, 32, 32, generator=draw),
        "audio": torch.randn(records, 1, 64, 120, generator=draw) - 5,
        "sensors": torch.randn(records, 64, 6, generator=draw),
        "label": torch.tensor([0, 1, 1, 5])[:records],
    }


@pytest.fixture(scope="module")
def model():
    return QuadModalSOTAModel.fresh(encoders(), quiet=True, **SMALL).eval()


def test_the_shapes_of_the_seed_and_nothing_that_is_not_finite(model):
    said = model(batch())
    shapes = {name: tuple(tensor.shape) for name, tensor in said.items()}
    tokens = 8 + 5 + 16 + 64 // 8
    assert shapes == {
        "features": (3, 48), "projection": (3, 128), "logits": (3, 12), "anomaly_score": (3,), "attention": (3, tokens), "modality_attention": (3, 4),
    }  # fmt: skip
    assert all(tensor.isfinite().all() for tensor in said.values())
    torch.testing.assert_close(said["modality_attention"].sum(1), torch.ones(3))
    odds = said["logits"].softmax(1)
    torch.testing.assert_close(said["anomaly_score"], ((1 - odds[:, 0]) / odds[:, 0]).log(), rtol=1e-4, atol=1e-5)


def test_by_default_it_has_the_sizes_of_the_seed():
    said = QuadModalSOTAModel.fresh(encoders(), quiet=True).eval()(batch(2))
    assert said["features"].shape == (2, 512) and said["logits"].shape == (2, 12)


def test_media_give_what_their_stored_tokens_give():
    """Raw media through the whole are the encoders' tokens through the detector of records."""
    detector = CrossAttention(**SMALL).open({"video": 192, "image": 192, "audio": 192, "series": 6}, classes=CLASSES)
    model, given = QuadModalSOTAModel(encoders(), detector.network, quiet=True).eval(), batch()
    given["present"] = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 1, 0]], dtype=torch.bool)
    with torch.no_grad():
        said, tokens = model(given), model.tokens(given)
    packed = {}
    for name, part in tokens.items():
        lengths = torch.cat([torch.zeros(1, dtype=torch.int64), part.mask.sum(1).cumsum(0)])
        packed[name] = Ragged(part.values[part.mask], part.time[part.mask], lengths)
    stored = Records(["a", "b", "c"], torch.zeros(3, dtype=torch.int8), packed)
    torch.testing.assert_close(detector.classify(stored).logits, said["logits"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(detector.classify(stored).features, said["features"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(detector.score(stored), said["anomaly_score"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*SPELT])
def test_a_modality_may_be_left_out_masked_or_declared_absent_with_one_result(model, name):
    spelling, column = SPELT[name][0], list(SPELT).index(name)
    without = {key: value for key, value in batch().items() if key != spelling}
    length = batch()[spelling].shape[-1 if name == "audio" else 1]
    masked = batch() | {"masks": {spelling: torch.zeros(3, length, dtype=torch.bool)}}
    masked[spelling] = torch.full_like(masked[spelling], math.nan)
    absent = batch() | {"present": torch.ones(3, 4, dtype=torch.bool).index_fill(1, torch.tensor(column), False)}
    left_out = model(without)["features"]
    assert left_out.isfinite().all() and not torch.allclose(left_out, model(batch())["features"])
    torch.testing.assert_close(model(masked)["features"], left_out)
    torch.testing.assert_close(model(absent)["features"], left_out)


def test_a_missing_view_counts_for_nothing_wherever_it_stands(model):
    four = batch() | {"post_images": batch()["post_images"][:, :4]}
    padded = batch() | {"masks": {"post_images": torch.tensor([[1, 1, 1, 1, 0]] * 3, dtype=torch.bool)}}
    torch.testing.assert_close(model(padded)["features"], model(four)["features"])


def test_both_spellings_of_the_pictures_are_one_modality(model):
    given = batch()
    other = {("post_weld_images" if key == "post_images" else key): value for key, value in given.items()}
    assert torch.equal(model(other)["logits"], model(given)["logits"])
    assert torch.equal(model(given | {"post_weld_images": given["post_images"]})["logits"], model(given)["logits"])
    with pytest.raises(WrongBatch, match="two names of one modality"):
        model(given | {"post_weld_images": given["post_images"] + 0.1})


def test_a_batch_of_raw_media_goes_into_the_contrast_and_its_gradient_into_what_learns():
    """[W-66]"""
    model = QuadModalSOTAModel.fresh(encoders(), quiet=True, **SMALL).train()
    given = batch(4)
    said = model(given)
    loss = SupConLoss()(said["projection"][:, None], given["label"]) + torch.nn.functional.cross_entropy(said["logits"], given["label"])
    loss.backward()
    assert loss.isfinite() and all(one.grad is None for one in model.encoders.parameters())
    learning = [name for name, one in model.named_parameters() if one.grad is not None and one.grad.abs().sum() > 0]
    assert any("of_series" in name for name in learning) and any("fusion" in name for name in learning) and any("heads" in name for name in learning)


def test_it_says_how_many_parameters_there_are_and_how_many_learn(capsys):
    """[W-64]"""
    model = QuadModalSOTAModel.fresh(encoders(), **SMALL)
    said = capsys.readouterr().out
    total, learning = parameters(model)
    assert f"{total:,}" in said and f"{learning:,}" in said and 0 < learning < total
    assert learning == sum(one.numel() for one in model.network.parameters())


@pytest.mark.parametrize(("rank", "most"), [(0, 0.05), (8, 0.05)])
def test_with_the_real_architectures_less_than_a_twentieth_learns(rank, most):
    """[W-65] Counted on the meta device: no weights are needed for that."""
    from transformers import ASTConfig, ASTModel, Dinov2Config, Dinov2Model, VJEPA2Config, VJEPA2Model

    with torch.device("meta"):
        made = {
            "video": VideoEncoder(network=VJEPA2Model(VJEPA2Config()), lora_rank=rank),
            "image": ImageEncoder(network=Dinov2Model(Dinov2Config()), lora_rank=rank),
            "audio": AudioEncoder(network=ASTModel(ASTConfig()), lora_rank=rank),
        }
    model = QuadModalSOTAModel.fresh(made, quiet=True)
    total, learning = parameters(model)
    assert 450e6 < total < 500e6 and learning / total < most, (total, learning)
    adapters = sum(parameters(encoder)[1] for encoder in made.values())
    assert adapters / total < 0.02 and (adapters > 0) == (rank > 0)  # [W-43]


def test_layers_of_a_backbone_learn_at_a_rate_of_their_own():
    model = QuadModalSOTAModel.fresh(encoders(unfreeze_last=1, lora_rank=0), quiet=True, **SMALL)
    fast, slow = model.parameter_groups()
    assert fast["lr"] == 1e-4 and slow["lr"] == 1e-6
    assert sum(one.numel() for one in slow["params"]) == sum(parameters(encoder)[1] for encoder in model.encoders.values()) > 0
    adapted = QuadModalSOTAModel.fresh({**encoders(), "video": VideoEncoder(lora_rank=4)}, quiet=True, **SMALL)
    assert len(adapted.parameter_groups()) == 1


def test_a_clock_moves_the_tokens_and_nothing_else(model):
    spread = {"sensors": torch.linspace(0, 1, 64).expand(3, -1)}
    torch.testing.assert_close(model(batch() | {"time": spread})["features"], model(batch())["features"])
    later = {"sensors": torch.linspace(0.5, 1, 64).expand(3, -1)}
    assert not torch.allclose(model(batch() | {"time": later})["features"], model(batch())["features"])


def test_the_time_of_a_token_is_that_of_its_known_frames(model):
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]] * 3, dtype=torch.bool)
    given = {"video": batch()["video"], "masks": {"video": mask}, "time": {"video": torch.where(mask, torch.full((3, 8), 0.25), torch.tensor(math.nan))}}
    part = model.tokens(given)["video"]
    assert part.mask[0].any() and not part.mask.all()
    torch.testing.assert_close(part.time[part.mask], torch.full((int(part.mask.sum()),), 0.25))


def test_a_batch_of_the_welding_data_set_goes_through_the_model_and_into_the_contrast(model):
    """[W-66] What `WeldingDataset` and its `collate` give, with a weld that has no film and one that lacks a view."""
    welding = pytest.importorskip("stages.datasets.welding_dataset", reason="the data set of raw welds is not here")
    from torch.utils.data import DataLoader

    from stages.datasets.record_adapters import RecordRow

    draw = np.random.default_rng(0)

    def read(row):
        views = (0, 1, 2, 4) if row.record_id == "w1" else (0, 1, 2, 3, 4)
        media = {
            "video": welding.Medium(draw.integers(0, 255, (12, 32, 32), np.uint8), np.linspace(0, 1, 12)),
            "image": welding.Medium(draw.integers(0, 255, (len(views), 32, 32, 3), np.uint8), np.array(views) / 4, views),
            "audio": welding.Medium(draw.normal(-8, 2, (150, 64)).astype(np.float32), np.linspace(0, 0.75, 150)),
            "series": welding.Medium(draw.normal(size=(50, 6)), np.linspace(0, 1, 50)),
        }
        return {name: medium for name, medium in media.items() if name != "video" or row.record_id != "w0"}

    rows = [RecordRow(f"w{number}", {}, int(number > 1), "porosity" if number > 1 else "") for number in range(4)]
    shape = welding.Shape(frames=16, frame_size=32, image_size=32, steps=64, clock_s=2.0)
    (given,) = DataLoader(welding.WeldingDataset(rows, read, shape), batch_size=4, collate_fn=welding.collate)
    said = model(given)
    assert said["features"].shape == (4, 48) and all(tensor.isfinite().all() for tensor in said.values())
    assert model.tokens(given)["video"].mask.any(1).tolist() == [False, True, True, True]
    assert SupConLoss()(said["projection"][:, None], given["label"]).isfinite()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"video": torch.rand(2, 8, 1, 32, 32)}, "different numbers of records: video 2, post_images 3"),
        ({"video": torch.rand(3, 8, 3, 32, 32)}, "3 channels; expected 1, grey"),
        ({"sensors": torch.rand(3, 64)}, r"expected 3 axes"),
        ({"masks": {"sensors": torch.ones(3, 63, dtype=torch.bool)}}, "out of step"),
        ({"time": {"video": torch.zeros(3, 9)}}, r"time of video has the shape \(3, 9\); expected \(3, 8\)"),
        ({"post_images": 255 * torch.rand(3, 5, 3, 32, 32)}, "expected float in 0..1, or uint8"),
        ({"sensors": torch.full((3, 64, 6), math.nan)}, "sensors holds values that are not finite"),
        ({"present": torch.zeros(3, 4, dtype=torch.bool)}, "record 0 of the batch has none"),
        ({"present": torch.zeros(3, 3, dtype=torch.bool)}, "present has the shape"),
    ],
)
def test_a_batch_that_is_out_of_step_or_not_normalised_is_refused(model, change, said):
    """[W-08, W-09, W-10]"""
    with pytest.raises(WrongBatch, match=said):
        model(batch() | change)
    with pytest.raises(WrongBatch, match="at least one of video"):
        model({"label": torch.zeros(3)})


def test_bytes_are_read_as_their_share_of_255(model):
    pixels = torch.randint(0, 256, (3, 5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(batch() | {"post_images": pixels})["logits"], model(batch() | {"post_images": pixels / 255})["logits"])
