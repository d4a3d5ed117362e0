"""What every detector of records promises, whoever wrote it. A new detector is tested here without being named."""

import itertools

import pytest
import torch
from sklearn.metrics import roc_auc_score

from stages import fusion
from stages.datasets.records import UNKNOWN, Records
from stages.fusion import artefact
from stages.fusion.detector import RecordDetector, WrongRecords
from stages.training import Run
from stages.types import NotFitted, Refusal
from tests.fusion.synthetic import WIDTHS, records

DEEP = {
    "encoding": {"width": 16, "heads": 2, "sensor_layers": 1, "sensor_ffn": 32},
    "features": 16,
    "learning": {"steps": 12, "learning_rate": 1e-2, "classes_per_batch": 4, "per_class": 6},
}
SMALL = {  # options that make a fit take a fraction of a second
    "classical.concat_mlp": {"hidden": 16, "epochs": 8, "learning_rate": 1e-2, "modality_dropout": 0.2},
    "classical.forest": {"trees": 25},
    "classical.unimodal": {"modality": "image"},
    "deep.cross_attention": DEEP | {"queries": 2, "layers": 1, "heads": 2, "ffn": 32},
    "deep.gated": DEEP,
    "deep.late": DEEP,
    "deep.mid": DEEP,
    "deep.paper_baseline": {"audio": "series", "video": "text", "audio_width": 16, "audio_code": 3, "video_widths": [16, 4], "dropout": 0.1, "steps": 40},
    "deep.process_to_result": {"process": ["text"], "hidden": 16, "steps": 30, "learning_rate": 0.003},
    "deep.unimodal": DEEP | {"modality": "image"},
    "perceiver_moe": {
        "width": 16,
        "latents": 4,
        "heads": 2,
        "blocks": 1,
        "hidden": 24,
        "learning_rate": 1e-2,
        "batch_size": 16,
        "steps": 24,
        "ema": 0.9,
    },
}
WORLD = {"missing": 0.2, "strength": 6.0, "faint": 0.7}  # so that each modality alone sees much of every fault
TRAIN, VAL, TEST = (records(seed, count, **WORLD) for seed, count in enumerate((120, 60, 80)))
SAME = {"rtol": 1e-5, "atol": 1e-5}
NAMES = fusion.known()

pytestmark = pytest.mark.parametrize("name", NAMES)


def make(name: str) -> RecordDetector:
    return fusion.build(name, SMALL.get(name, {}), at=("records", "models", name))


def fit(name: str, seed: int = 0, train: Records = TRAIN, val: Records = VAL) -> RecordDetector:
    return make(name).fit(train, val, Run(seed=seed, quiet=True))


@pytest.fixture(scope="module")
def cache():
    return {}


@pytest.fixture
def fitted(name, cache):
    """One fit for all tests that only score."""
    if name not in cache:
        cache[name] = fit(name)
    return cache[name]


def blind(detector: RecordDetector) -> bool:
    """It says itself that no planted anomaly can change its score."""
    return detector.blind is not None


def of_one_label(given: Records, label: int) -> Records:
    return given.take((given.label == label).nonzero()[:, 0].tolist())


def test_one_finite_score_a_record_without_a_gradient(name, fitted):
    score = fitted.score(TEST)
    assert score.shape == (TEST.samples,) and score.dtype == torch.float32 and score.isfinite().all() and not score.requires_grad


def test_anomalies_score_higher_unless_the_detector_is_blind_to_them(name, fitted):
    found = roc_auc_score(TEST.label, fitted.score(TEST))
    assert abs(found - 0.5) < 0.15 if blind(fitted) else found > 0.8, found


def test_the_score_of_a_record_does_not_depend_on_the_others(name, fitted):
    together = fitted.score(TEST)
    alone = torch.cat([fitted.score(TEST.take([position])) for position in range(20)])
    torch.testing.assert_close(alone, together[:20], **SAME)
    backwards = list(range(TEST.samples))[::-1]
    torch.testing.assert_close(fitted.score(TEST.take(backwards)), together[backwards], **SAME)


def test_modalities_may_stand_in_any_order(name, fitted):
    turned = TEST._replace(tokens=dict(reversed(TEST.tokens.items())))
    torch.testing.assert_close(fitted.score(turned), fitted.score(TEST), **SAME)


def test_every_subset_of_modalities_scores_and_an_emptied_one_is_as_one_that_was_never_there(name, fitted):
    for count in range(1, len(WIDTHS) + 1):
        for subset in itertools.combinations(WIDTHS, count):
            left = TEST.only(subset)
            left = left.take(left.present.any(1).nonzero()[:, 0].tolist())
            score = fitted.score(left)
            assert score.isfinite().all(), subset
            without = left._replace(tokens={modality: left.tokens[modality] for modality in subset})
            assert torch.equal(fitted.score(without), score), subset


def test_the_modalities_of_val_may_stand_in_any_order(name, fitted):
    turned = VAL._replace(tokens=dict(reversed(VAL.tokens.items())))
    torch.testing.assert_close(fit(name, val=turned).score(TEST), fitted.score(TEST), **SAME)


def test_val_may_be_empty_or_of_one_label_or_partly_unlabelled(name):
    unlabelled = VAL._replace(label=torch.where(torch.arange(VAL.samples) % 3 == 0, UNKNOWN, VAL.label).to(torch.int8))
    for val in (VAL.take([]), of_one_label(VAL, 0), unlabelled):
        assert fit(name, val=val).score(TEST).isfinite().all()


def test_a_saved_detector_scores_the_same(name, fitted, tmp_path):
    config = {"model": name, "detector": name, "options": SMALL.get(name, {}), "seed": 0}
    artefact.save(tmp_path, fitted, config, [])
    assert torch.equal(artefact.load(tmp_path).score(TEST), fitted.score(TEST))


def test_the_same_seed_gives_the_same_bytes_and_leaves_the_global_generator_alone(name, fitted, tmp_path):
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = fit(name)
    assert torch.equal(before, torch.random.get_rng_state())
    config = {"model": name, "detector": name, "options": SMALL.get(name, {}), "seed": 0}
    for place, detector in (("one", fitted), ("other", again)):
        artefact.save(tmp_path / place, detector, config, [])
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "other/model.safetensors").read_bytes()


def test_another_seed_changes_the_model_where_it_says_that_it_is_drawn_and_nowhere_else(name, fitted):
    other = fit(name, seed=1).state_dict()
    same = all(torch.equal(tensor, other[key]) for key, tensor in fitted.state_dict().items())
    assert same is not fitted.drawn


def test_scoring_changes_neither_the_records_nor_the_detector(name, fitted):
    given = records(2, 80, **WORLD)
    state = {key: tensor.clone() for key, tensor in fitted.state_dict().items()}
    first = fitted.score(given)
    assert torch.equal(first, fitted.score(given)) and not fitted.training
    assert all(torch.equal(one, other) for part in WIDTHS for one, other in zip(given.tokens[part], TEST.tokens[part]))
    assert all(torch.equal(state[key], tensor) for key, tensor in fitted.state_dict().items())


def test_labels_of_what_is_scored_are_not_looked_at(name, fitted):
    assert torch.equal(fitted.score(TEST._replace(label=torch.full_like(TEST.label, UNKNOWN))), fitted.score(TEST))


def test_what_learns_from_normal_records_sees_no_others(name, fitted):
    if fitted.supervised:
        pytest.skip("learns from both")
    alone = fit(name, train=of_one_label(TRAIN, 0))
    torch.testing.assert_close(alone.score(TEST), fitted.score(TEST), **SAME)


def test_what_was_never_seen_does_not_fit(name, fitted):
    stranger = records(3, 5, widths=WIDTHS | {"smell": 4}, missing=0)
    with pytest.raises(WrongRecords, match="smell"):
        fitted.score(stranger)
    with pytest.raises(WrongRecords, match="text has width 9, in training it had 8"):
        fitted.score(records(3, 5, widths=WIDTHS | {"text": 9}, missing=0))
    with pytest.raises(WrongRecords, match="r2-0000 has none"):
        fitted.score(TEST.only([]))


def test_an_unlabelled_record_to_learn_from_is_a_refusal(name):
    label = TRAIN.label.clone()
    label[:2] = UNKNOWN
    with pytest.raises(Refusal, match="2 records"):
        fit(name, train=TRAIN._replace(label=label))


def test_records_of_one_label_are_refused_by_what_needs_both(name):
    with pytest.raises(Refusal):
        fit(name, train=of_one_label(TRAIN, 1))
    if make(name).supervised:
        with pytest.raises(Refusal, match="one label"):
            fit(name, train=of_one_label(TRAIN, 0))
    else:
        assert fit(name, train=of_one_label(TRAIN, 0)).score(TEST).isfinite().all()


def test_columns_that_never_vary_and_huge_units_give_finite_scores(name):
    def odd(given: Records) -> Records:
        text, image = given.tokens["text"], given.tokens["image"]
        return given._replace(
            tokens=given.tokens | {"text": text._replace(values=text.values * 0 + 3), "image": image._replace(values=1e4 * image.values)}
        )

    assert fit(name, train=odd(TRAIN), val=odd(VAL)).score(odd(TEST)).isfinite().all()


def test_an_unfitted_detector_says_so(name):
    with pytest.raises(NotFitted, match=type(make(name)).__name__):
        make(name).score(TEST)


@pytest.mark.gpu
def test_a_graphics_card_gives_the_same_scores(name, fitted, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    config = {"model": name, "detector": name, "options": SMALL.get(name, {}), "seed": 0}
    artefact.save(tmp_path, fitted, config, [])
    moved = artefact.load(tmp_path).to("cuda")
    torch.testing.assert_close(moved.score(TEST.to("cuda")).cpu(), fitted.score(TEST), rtol=1e-4, atol=1e-4)
    trained = make(name).fit(TRAIN, VAL, Run(seed=0, device="cuda", quiet=True)).to("cuda")
    assert trained.score(TEST.to("cuda")).isfinite().all()
