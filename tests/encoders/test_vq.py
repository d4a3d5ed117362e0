"""Two codebooks that follow what they stand for, and an autoencoder that can only say codes."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from stages import io
from stages.encoders import pretraining, train_vq, vq, weights
from stages.errors import UserError
from stages.params import ParamsError
from stages.training import Run
from tests.arrays import ArrayBatches, noise_pixels

FAST = {"image_size": 16, "batch_size": 4, "learning_rate": 1e-2, "device": "cpu"}


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(vq.KNOWN, "vq-tiny", {"channels": 16, "codes": 32})
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (16, 16), tuple((number * step) % 256 for step in (37, 91, 143))).save(folder / f"{number:02}.png")
    return sorted(folder.iterdir())


def quantiser(codes: list[list[float]]) -> vq.Quantiser:
    made = vq.Quantiser(len(codes), len(codes[0]))
    made.codes.copy_(torch.tensor(codes))
    made.sums.copy_(made.codes)
    made.counts.fill_(1.0)
    return made


def test_each_position_takes_its_nearest_code():
    """Against brute force, on random embeddings."""
    made = vq.Quantiser(11, 5)
    embedded = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    rows = embedded.permute(0, 2, 3, 1).reshape(-1, 5)
    expected = torch.stack([made.codes[(made.codes - row).norm(dim=1).argmin()] for row in rows])
    torch.testing.assert_close(vq.as_rows(made(embedded)), expected)


def test_the_gradient_passes_a_quantiser_as_if_it_were_not_there():
    made = quantiser([[0.0], [1.0]])
    embedded = torch.tensor([0.2, 0.9, 0.7]).view(1, 1, 1, 3).requires_grad_()
    quantised = made(embedded)
    assert quantised.flatten().tolist() == pytest.approx([0, 1, 1])
    (quantised * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert embedded.grad.flatten().tolist() == [1, 2, 3]


def test_codes_follow_the_exponential_mean_of_what_they_stand_for():
    """By hand: code 0 stands for 0.2 and 0.4 (count 1 -> 0.99 + 0.02 = 1.01, sum 0 -> 0.006), code 1 for 0.8 (1 and 0.998)."""
    made = quantiser([[0.0], [1.0]])
    made.follow(torch.tensor([[0.2], [0.4], [0.8]]), torch.Generator())
    assert made.counts.tolist() == pytest.approx([1.01, 1.0])
    assert made.codes.flatten().tolist() == pytest.approx([0.006 / 1.01, 0.998])


def test_codes_end_at_the_means_of_their_clusters():
    made = quantiser([[-0.1], [0.1]])
    for _ in range(600):
        made.follow(torch.tensor([[-3.0], [-1.0], [4.0], [6.0]]), torch.Generator())
    assert made.codes.flatten().tolist() == pytest.approx([-2, 5], abs=0.02)


def test_a_code_that_stands_for_nothing_is_moved_to_an_embedding():
    made = quantiser([[0.0], [1000.0]])
    rows = torch.tensor([[0.5], [0.6]])
    for _ in range(400):
        made.follow(rows, torch.Generator().manual_seed(0))
    assert made.codes.flatten().tolist() == pytest.approx([0.55, 1000], abs=0.02), "0.99 to the 400th is still above the threshold"
    for _ in range(100):
        made.follow(rows, torch.Generator().manual_seed(0))
    assert made.codes.max() < 1


def test_codebooks_start_as_embeddings_of_the_images():
    network = vq.VQ(channels=8, codes=6)
    images = noise_pixels(3).float() / 255
    network.start(images, torch.Generator().manual_seed(0))
    encoded = network.encode(images)
    for book, embedded in ((network.codes_low, encoded.embedded_low), (network.codes_high, encoded.embedded_high)):
        rows = vq.as_rows(embedded)
        assert all((rows - code).abs().amax(dim=1).min() < 1e-5 for code in book.codes)


def test_levels_have_strides_of_8_and_4_and_a_drawing_the_size_of_the_image():
    drawn, encoded = vq.VQ(channels=8, codes=5)(torch.rand(2, 3, 32, 48))
    assert drawn.shape == (2, 3, 32, 48) and encoded.low.shape == (2, 8, 4, 6) and encoded.high.shape == (2, 8, 8, 12)


def test_the_loss_is_the_error_of_the_drawing_over_the_variance_and_a_quarter_of_both_commitments():
    network = vq.VQ(channels=8, codes=16)
    batch = ArrayBatches({"pixels": noise_pixels(3)}).take([0, 1, 2])
    images = batch.features["pixels"] / 255
    drawn, encoded = network(images)
    squares = [(encoded.embedded_low - encoded.low).square().mean(), (encoded.embedded_high - encoded.high).square().mean()]
    expected = (drawn - images).square().mean() / 0.5 + 0.25 * sum(squares)
    got = train_vq.loss(network, 0.5, batch, torch.Generator())
    torch.testing.assert_close(got, expected)
    [slope] = torch.autograd.grad(got, network.embed_low.bias)
    assert slope.abs().sum() > 0, "the drawing's error reaches the low encoder through both quantisers"


def test_what_is_learnt_draws_images_it_never_saw_better_than_their_mean_colour(tmp_path, pictures):
    made = train_vq.make("vq-tiny", pictures, tmp_path / "backbones", steps=100, **FAST)
    assert made.loss < 0.95 * made.constant and made.held_out == 2
    network = vq.VQ(**vq.KNOWN["vq-tiny"])
    assert weights.load_or_refuse(network, "vq-tiny", tmp_path / "backbones")["sha256"] == made.sha256
    held_out = pretraining.divided(pictures, 16, 4, seed=0)[1]
    assert train_vq.measure(network, held_out, Run(seed=0, device="cpu")) == pytest.approx(made.loss, rel=1e-5)


def test_the_constant_is_the_mean_colour_by_hand(tmp_path):
    """Train on one black and one white image: grey, whose squared error on white is a quarter (in 0..1)."""
    for name, level in (("black", 0), ("white", 255)):
        Image.new("RGB", (16, 16), (level,) * 3).save(tmp_path / f"{name}.png")
    train, held_out = (pretraining.Pictures([tmp_path / f"{n}.png" for n in names], 16, 2) for names in (("black", "white"), ("white",)))
    assert train_vq.constant(train, held_out) == pytest.approx(0.25)


def test_a_training_that_is_stopped_goes_on_to_the_same_file(tmp_path, pictures, monkeypatch):
    """Codebooks included, which change outside the optimiser."""
    monkeypatch.setattr(train_vq, "constant", lambda train, held_out: 1e9)  # twenty steps need not have learnt anything
    whole = train_vq.make("vq-tiny", pictures, tmp_path / "whole", steps=20, **FAST)
    real, run_of, taken = train_vq.loss, pretraining.run_of, []

    def killed(*args):
        taken.append(0)
        if len(taken) == 11:
            raise KeyboardInterrupt
        return real(*args)

    def saving_often(*args):
        run = run_of(*args)
        run.checkpoint_s = 0
        return run

    monkeypatch.setattr(pretraining, "run_of", saving_often)
    monkeypatch.setattr(train_vq, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train_vq.make("vq-tiny", pictures, tmp_path / "resumed", steps=20, **FAST)
    resumed = train_vq.make("vq-tiny", pictures, tmp_path / "resumed", steps=20, **FAST)
    assert len(taken) == 11 + 10
    first, second = (io.read_model(tmp_path / folder / "vq-tiny.safetensors") for folder in ("whole", "resumed"))
    assert all(torch.equal(value, second[key]) for key, value in first.items()) and resumed.sha256 == whole.sha256


def test_unknown_names_sizes_and_a_training_without_success_are_refused(tmp_path, pictures):
    with pytest.raises(ParamsError, match="did you mean 'vq-dsr'"):
        train_vq.make("vq-dsrr", pictures, tmp_path, **FAST)
    with pytest.raises(ParamsError, match="multiple of 8, got 20"):
        train_vq.make("vq-tiny", pictures, tmp_path, **{**FAST, "image_size": 20})
    with pytest.raises(UserError, match="nothing is written"):
        train_vq.make("vq-tiny", pictures, tmp_path / "none", steps=1, **{**FAST, "learning_rate": 1e-9})
    assert not (tmp_path / "none").exists()


def test_a_published_checkpoint_fits_by_the_order_of_its_tensors(tmp_path):
    """Other names, the same order and shapes; the nearest code is then the checkpoint's."""
    network = vq.VQ(channels=8, codes=16)
    state = {f"_theirs.{number}": value + 1 for number, value in enumerate(network.state_dict().values())}
    torch.save(state, tmp_path / "vq_model_pretrained_128_4096.pckl")
    assert weights.load_or_refuse(vq.VQ(channels=8, codes=16).requires_grad_(False), "vq-dsr", tmp_path)["name"] == "vq-dsr"
    fresh = vq.VQ(channels=8, codes=16)
    weights.load_or_refuse(fresh, "vq-dsr", tmp_path)
    torch.testing.assert_close(fresh.codes_high.codes, network.codes_high.codes + 1)
    assert F.mse_loss(fresh.rise.bias, network.rise.bias + 1) < 1e-12
