"""FRE against its equations and against principal component analysis. The letters are those of the list of what implementations get wrong,
in the order given there."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from stages.detectors.distillation.fre import FRE, TiedAutoencoder, principal_subspace
from stages.training import Run
from tests.arrays import SIZE, ArrayBatches, features_of, grid_features, normal_pixels, upsampled

SMALL = {"layer": "layer2", "latent": 8, "steps": 60, "batch_size": 8, "start": "pca"}  # for the contract test


def make(**options) -> FRE:
    return FRE(**{"layer": "layer2", "latent": 4, "steps": 20, "batch_size": 8, **options})


def correlated(count: int, rank: int = 6, width: int = 3, grid: tuple[int, int] = (4, 4), seed: int = 0) -> ArrayBatches:
    """Features whose pooled vectors lie near a subspace of `rank` dimensions, with falling variances."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(count, rank, generator=generator) * torch.arange(rank, 0, -1)
    values = factors @ torch.randn(rank, width * grid[0] * grid[1], generator=torch.Generator().manual_seed(99)) + 0.5
    features = grid_features(count, width, grid)
    features["layer2"] = values.view(count, width, *grid) + 0.05 * torch.randn(count, width, *grid, generator=generator)
    return ArrayBatches(features)


def pooled(batches: ArrayBatches) -> torch.Tensor:
    return F.avg_pool2d(batches.features["layer2"], 2).flatten(1)


def test_the_error_by_hand():
    """W = (1, 0), b_e = 1, b_d = (0, 2): v = (3, 5) gives z = 4, then (4, 0) + (0, 2); the squared error is 1 + 9. Two cells: 10 each."""
    detector = make(pool=1, latent=1)
    detector.autoencoder = TiedAutoencoder(torch.tensor([[1.0, 0.0]]))
    detector.autoencoder.encoder_bias.data = torch.tensor([1.0])
    detector.autoencoder.decoder_bias.data = torch.tensor([0.0, 2.0])
    features = {"layer2": torch.tensor([3.0, 5.0]).view(1, 2, 1, 1), "pixels": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}
    image_score, anomaly_map = detector.score(features)
    assert image_score.item() == pytest.approx(10) and torch.equal(anomaly_map, torch.full((1, 4, 4), 10.0))


def test_the_map_sums_squared_errors_over_channels_and_the_score_over_all_dimensions(run):
    batches = correlated(10)
    detector = make().fit(batches, None, run)
    vectors = pooled(batches)
    errors = (vectors - detector.autoencoder(vectors)).detach().view(10, 3, 2, 2).square()
    image_score, anomaly_map = detector.score(batches.features)
    torch.testing.assert_close(image_score, errors.sum(dim=(1, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(anomaly_map, upsampled(errors.sum(dim=1), SIZE), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("grid", "expected"), [((4, 4), 12), ((6, 4), 18), ((5, 7), 36)])
def test_fre_a_the_length_of_the_vector_comes_from_the_features(run, grid, expected):
    """3 channels on the pooled grid; 65536 holds for 1024 channels at 256 pixels alone. A row that pooling does not divide stays."""
    batches = ArrayBatches(grid_features(9, width=3, grid=grid))
    detector = make(steps=2).fit(batches, None, run)
    assert detector.autoencoder.weight.shape == (4, expected) and detector.autoencoder.decoder_bias.shape == (expected,)
    with pytest.raises(ValueError, match=rf"FRE knows vectors of {expected} numbers, but layer2 of these images gives 75"):
        detector.score(grid_features(2, width=3, grid=(10, 10)))


def test_fre_a_a_cell_at_the_border_is_the_mean_of_what_it_holds():
    features = {"layer2": torch.arange(9.0).view(1, 1, 3, 3), "pixels": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}
    assert torch.equal(make()._pooled(features).flatten(), torch.tensor([2.0, 3.5, 6.5, 8.0]))


def test_fre_b_the_trained_loss_approaches_the_residual_of_principal_components(run):
    """scikit-learn's PCA with as many components leaves what no linear auto-encoder can go below."""
    from sklearn.decomposition import PCA

    batches = correlated(40)
    vectors = pooled(batches).numpy().astype("float64")
    pca = PCA(4).fit(vectors)
    floor = ((vectors - pca.inverse_transform(pca.transform(vectors))) ** 2).mean()
    make(steps=400, epochs=400, batch_size=40, learning_rate=0.03).fit(batches, None, run)
    reached = run.history[-1]["loss"]
    assert floor * 0.999 <= reached < 1.05 * floor and run.history[0]["loss"] > 20 * floor


def test_fre_b_the_start_at_the_principal_subspace_is_what_scikit_learn_projects_on():
    from sklearn.decomposition import PCA

    vectors = pooled(correlated(12))
    autoencoder = principal_subspace(vectors, 5)
    pca = PCA(5).fit(vectors.numpy().astype("float64"))
    expected = torch.from_numpy(pca.inverse_transform(pca.transform(vectors.numpy().astype("float64")))).float()
    torch.testing.assert_close(autoencoder(vectors).detach(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((autoencoder.weight @ autoencoder.weight.t()).detach(), torch.eye(5), rtol=0, atol=1e-5)


def test_fre_b_there_are_no_more_principal_directions_than_images_less_one():
    assert principal_subspace(torch.randn(5, 30, generator=torch.Generator().manual_seed(0)), 220).weight.shape == (4, 30)
    with pytest.raises(ValueError, match="needs at least 2 training images that differ, got 1"):
        principal_subspace(torch.ones(1, 30), 220)


def test_fre_c_the_matrix_starts_uniform_after_xavier_and_both_biases_are_trained(run):
    batches = correlated(16)
    detector = make(latent=50)
    start = detector._started(batches, run)
    limit = (6 / (50 + 12)) ** 0.5
    assert start.weight.abs().max() <= limit and start.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.1)
    assert not start.encoder_bias.any() and not start.decoder_bias.any()
    trained = detector.fit(batches, None, run).autoencoder
    assert {name for name, _ in trained.named_parameters()} == {"weight", "encoder_bias", "decoder_bias"}
    assert all((trained.get_parameter(name) != start.get_parameter(name)).all() for name in ("weight", "encoder_bias", "decoder_bias"))


def test_encoder_and_decoder_share_one_matrix():
    """The gradient by W is that of the encoder plus that of the decoder: against autograd through two untied copies."""
    generator = torch.Generator().manual_seed(0)
    tied = TiedAutoencoder(torch.randn(3, 7, generator=generator))
    vectors = torch.randn(5, 7, generator=generator)
    down, up = (tied.weight.detach().clone().requires_grad_() for _ in range(2))
    slopes = torch.autograd.grad(F.mse_loss((vectors @ down.t()) @ up, vectors), (down, up))
    F.mse_loss(tied(vectors), vectors).backward()
    torch.testing.assert_close(tied.weight.grad, sum(slopes))


def test_no_backbone_runs_in_fit_so_other_pixels_leave_the_same_state(monkeypatch):
    class Forbidden:
        def __init__(self, **_options):
            raise AssertionError("a backbone was built")

    monkeypatch.setitem(sys.modules, "stages.encoders.cnn", types.SimpleNamespace(CNN=Forbidden))
    states = []
    for pixels in (normal_pixels(10), normal_pixels(10, seed=77)):
        batches = ArrayBatches({**features_of(normal_pixels(10)), "pixels": pixels})
        states.append(make().fit(batches, batches, Run(seed=0, quiet=True)).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_the_kept_state_has_the_lowest_loss_on_held_out_images(run):
    held_out = correlated(6, seed=5)
    detector = make(steps=None, epochs=30, learning_rate=0.3, patience=None).fit(correlated(12), held_out, run)
    best = min(row["val_loss"] for row in run.history)
    assert best < run.history[-1]["val_loss"]
    assert detector.score(held_out.features).image_score.mean().item() / 12 == pytest.approx(best, rel=1e-4)
