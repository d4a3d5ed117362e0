"""The names of the example, used as the example uses them."""

import random

import numpy as np
import pytest
import torch

from stages.datasets.recordings import Region
from stages.timeseries import Config, SelfDistilledMAEMultivariate, SlidingWindowDataset, SlidingWindowTimeSeriesGenerator, set_seed
from stages.timeseries.windows import Kind


def data_set(signals, label, regions=(), **options):
    return SlidingWindowDataset(signals, label, regions, **{"window_size": 10, "stride": 5, "mask_last_n": 2, **options})


def test_the_example_runs_from_a_seed_to_a_redrawn_window():
    set_seed(42)
    config = Config()
    config.patchify_mode = "linear"
    generator = SlidingWindowTimeSeriesGenerator(
        total_length=5000, num_features=config.num_features, interval_scale=config.anomaly_interval_scale, seed=config.random_seed
    )
    signals, point_labels, anomaly_regions = generator.generate()
    dataset = SlidingWindowDataset(
        signals=signals, point_labels=point_labels, anomaly_regions=anomaly_regions, window_size=config.seq_length,
        stride=config.sliding_window_stride, mask_last_n=10, split="train", train_ratio=0.5, seed=config.random_seed,
    )  # fmt: skip
    model = SelfDistilledMAEMultivariate(config).eval()
    window, label, point_labels, kind = dataset[0]
    output = model(window[None])
    assert (
        signals.shape == (5000, 8)
        and window.shape == (100, 8)
        and point_labels.shape == (100,)
        and label in (0, 1)
        and int(kind) in set(Kind)
    )
    assert output.teacher.shape == output.student.shape == (1, 100, 8) and output.latent.shape == (1, 25, 64)
    assert output.mask.shape == (1, 100) and output.mask.sum() == 40


def test_the_defaults_are_those_of_the_example():
    config = Config()
    found = (
        config.seq_length,
        config.num_features,
        config.sliding_window_total_length,
        config.sliding_window_stride,
        config.d_model,
        config.nhead,
    )
    assert found == (100, 8, 440_000, 10, 64, 4)
    found = (
        config.num_encoder_layers,
        config.num_patches,
        config.patch_size,
        config.patchify_mode,
        config.masking_ratio,
        config.masking_strategy,
    )
    assert found == (3, 25, 4, "linear", 0.4, "patch")
    assert (config.batch_size, config.num_epochs, config.learning_rate, config.random_seed) == (32, 50, 1e-3, 42)


@pytest.mark.parametrize("change", [{"num_patches": 10}, {"patch_size": 5}, {"seq_length": 96}])
def test_patches_that_do_not_fill_the_window_are_refused(change):
    with pytest.raises(ValueError, match="num_patches x patch_size must be seq_length"):
        SelfDistilledMAEMultivariate(Config(**change))


def test_the_end_that_is_hidden_is_whole_patches():
    with pytest.raises(ValueError, match="multiple of patch_size = 4"):
        SelfDistilledMAEMultivariate(Config(mask_last_n=10))
    hidden = SelfDistilledMAEMultivariate(Config(mask_last_n=8)).last_hidden(3)
    assert hidden.shape == (3, 25) and hidden.sum(1).tolist() == [2, 2, 2] and hidden[:, -2:].all()


def test_only_set_seed_touches_the_global_generators():
    set_seed(7)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
    set_seed(7)
    config = Config()
    signals, label, regions = SlidingWindowTimeSeriesGenerator(2000, 8, 1.5, 42).generate()
    SlidingWindowDataset(signals, label, regions, counts={Kind.PURE_NORMAL: 3})
    SelfDistilledMAEMultivariate(config)
    assert expected == (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002


def test_the_network_follows_from_the_seed_of_its_config():
    first, again, other = (SelfDistilledMAEMultivariate(Config(random_seed=seed)).mask_token for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_no_window_crosses_the_split_and_its_region_is_on_neither_side():
    steps = np.arange(100, dtype=np.float32)[:, None]
    label = np.zeros(100, np.int8)
    label[45:55] = 1
    region = [Region(45, 55, "spike")]
    train = data_set(steps, label, region, stride=1, split="train")
    test = data_set(steps, label, region, stride=1, split="test")

    def seen(data):
        return torch.stack([window for window, *_ in data]) * data.spread + data.centre

    assert seen(train).max() < 44.5 and seen(test).min() > 54.5
    assert not any(labels.any() for _, _, labels, _ in [*train, *test])
    assert train.centre.item() == test.centre.item() == pytest.approx(22.0)  # of the 45 training steps alone


def test_a_sample_is_an_anomaly_only_if_its_end_is():
    label = np.zeros(60, np.int8)
    label[13:15] = 1
    data = data_set(np.random.default_rng(0).normal(size=(60, 2)), label, train_ratio=0.5)
    assert data.kinds.tolist() == [Kind.PURE_NORMAL, Kind.ANOMALY, Kind.DISTURBING_NORMAL, Kind.PURE_NORMAL, Kind.PURE_NORMAL]
    assert [int(label) for _, label, *_ in data] == [0, 1, 0, 0, 0]


def test_counts_draw_as_many_windows_of_a_kind_as_asked_the_same_for_the_same_seed():
    label = np.zeros(400, np.int8)
    label[90:110] = 1
    signals = np.random.default_rng(0).normal(size=(400, 2))
    drawn = [data_set(signals, label, counts={Kind.PURE_NORMAL: 5}, seed=seed) for seed in (1, 1, 2)]
    assert sum(kind == Kind.PURE_NORMAL for *_, kind in drawn[0]) == 5
    assert torch.equal(drawn[0].chosen, drawn[1].chosen) and not torch.equal(drawn[0].chosen, drawn[2].chosen)
