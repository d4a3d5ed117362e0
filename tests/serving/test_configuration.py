"""A configuration says what it asks for, and where a mistake stands."""

from pathlib import Path

import pytest

from stages.errors import Missing
from stages.params import ParamsError
from stages.serving import methods, workspace
from stages.serving.configuration import merged, read

KNOWN = {"winclip": "zero_shot.winclip", "patchcore": "memory_bank.patchcore"}
NAMED = [
    "base", "mvtec_winclip", "visa_winclip", "mvtec_patchcore", "visa_patchcore", "mvtec_afclip", "mvtec_afclip_tiny", "train_afclip",
]  # fmt: skip
EXAMPLE = """\
experiment:
  name: experiment_name
  seed: 2025
  output_root: results/mvtec/winclip

data:
  dataset: mvtec
  root: data/mvtec
  categories: ["bottle", "cable"]
  batch_size: 4
  k_shot: 0  # Zero-shot

model:
  name: winclip
  device: cuda
  backbone: ViT-B-16-plus-240
  resolution: 400

evaluation:
  metrics:
    compute_image_auroc: true
    compute_pixel_auroc: true
    compute_pro: true
  latency:
    warmup_iters: 1000
    measure_iters: 1000

visualization:
  num_examples: 12
  save_overlay: true
"""


@pytest.fixture
def example(tmp_path):
    """The example with one text replaced, and what base.yaml beside it holds."""

    def write(old: str = "", new: str = "", base: str | None = None) -> Path:
        assert old in EXAMPLE
        (tmp_path / "example.yaml").write_text(EXAMPLE.replace(old, new, 1))
        if base is not None:
            (tmp_path / "base.yaml").write_text(base)
        return tmp_path / "example.yaml"

    return write


def test_the_example_of_old_is_read_with_every_value_in_its_place(example):
    content = read(example(), KNOWN).content
    assert content.experiment.model_dump() == {"name": "experiment_name", "seed": 2025, "output_root": "results/mvtec/winclip"}
    assert (content.data.categories, content.data.batch_size, content.data.k_shot) == (["bottle", "cable"], 4, 0)
    assert (content.model.name, content.model.device, content.model.resolution) == ("winclip", "cuda", 400)
    assert (content.evaluation.latency.warmup_iters, content.evaluation.latency.measure_iters) == (1000, 1000)
    assert content.visualization.model_dump() == {"num_examples": 12, "save_overlay": True} and content.training is None


def test_base_is_read_first_and_the_file_that_is_named_wins_key_by_key(example):
    path = example("  seed: 2025\n", base="experiment:\n  seed: 7\n  name: other\ndata:\n  categories: [a, b, c]\n")
    content = read(path, KNOWN).content
    assert (content.experiment.seed, content.experiment.name, content.data.categories) == (7, "experiment_name", ["bottle", "cable"])


def test_merging_goes_into_mappings_and_nothing_else():
    assert merged({"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}, "e": None}) == {"a": {"b": 1, "c": [3]}, "d": 1, "e": None}
    assert merged({"k_shot": 4}, {"k_shot": None}) == {"k_shot": None}


def test_an_unknown_key_is_named_with_the_line_of_the_file_that_it_stands_in(example):
    path = example("  num_examples", "  num_exmples", base="# shared\nmodel:\n  devise: cuda\n")
    with pytest.raises(ParamsError) as error:
        read(path, KNOWN)
    line = 1 + path.read_text().splitlines().index("  num_exmples: 12")
    assert f"example.yaml:{line} visualization.num_exmples is not a known key; did you mean 'num_examples'?" in str(error.value)
    assert "base.yaml:3 model.devise is not a known key; did you mean 'device'?" in str(error.value)


def test_options_of_a_method_are_keys_of_the_model_checked_against_its_detector(example):
    found = read(example("  resolution: 400", "  resolution: 400\n  temperature: 1"), KNOWN)
    assert found.options == {"temperature": 1} and found.content.model.temperature == 1.0
    with pytest.raises(ParamsError, match=r"example.yaml:18 model.temprature is not a known key; did you mean 'temperature'\?"):
        read(example("  resolution: 400", "  resolution: 400\n  temprature: 1"), KNOWN)
    with pytest.raises(ParamsError, match=r"model.coreset_ratio is not a known key"):
        read(example("  resolution: 400", "  resolution: 400\n  coreset_ratio: 0.1"), KNOWN)


@pytest.mark.parametrize(("old", "new", "said"), [
    ("name: winclip", "name: winclop", r"example.yaml:14 model.name: no model 'winclop'; did you mean 'winclip'\?"),
    ("k_shot: 0", "k_shot: -1", r"example.yaml:11 data.k_shot: .* got -1"),
    ("device: cuda", "device: tpu", r"example.yaml:15 model.device: .* got 'tpu'"),
    ("name: experiment_name", "name: ../up", r"experiment.name: .* got '../up'"),
    ("  root: data/mvtec\n", "", r"example.yaml:6 data.root is missing"),
    ("seed: 2025", "seed: 2025\n  seed: 1", "not valid YAML"),
])  # fmt: skip
def test_what_cannot_be_is_said_with_its_place(example, old, new, said):
    with pytest.raises(ParamsError, match=said):
        read(example(old, new), KNOWN)


@pytest.mark.parametrize("content", ["", "- a\n", "just text\n", "model: winclip\n"])
def test_a_file_that_is_no_configuration_is_an_error_and_not_a_crash(tmp_path, content):
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(ParamsError, match=r"x.yaml:1"):
        read(tmp_path / "x.yaml", KNOWN)


def test_a_file_that_is_not_there_is_answered_with_the_nearest_that_is(example):
    with pytest.raises(Missing, match="did you mean 'example'"):
        read(example().with_name("exampel.yaml"), KNOWN)


def test_the_files_that_were_promised_are_there(root):
    assert {f"{name}.yaml" for name in NAMED} <= {path.name for path in (root / "configs").iterdir()}


@pytest.mark.parametrize("name", [name for name in NAMED if name != "base"])
def test_every_file_is_valid_and_becomes_entries(root, name):
    template, _ = workspace.template_of()
    asked = read(root / "configs" / f"{name}.yaml", methods.known(template))
    dataset, _, method = name.replace("train", "visa").partition("_")
    assert (asked.content.data.dataset, asked.content.model.name, asked.content.data.root) == (dataset, method, f"data/{dataset}")
    assert asked.content.experiment.output_root == f"results/{dataset}/{method}" and asked.content.experiment.seed == 2025
    assert len(asked.content.data.categories) == {"mvtec": 15, "visa": 12}[dataset]
    assert methods.plan(asked, template).entry["detector"] == methods.METHODS[method].detector
