"""What the committed results of `weld` may not be: better than what its generator says can be known."""

import json

import pytest

from stages.datasets.weld_media import evidence
from stages.datasets.weld_media.evidence import MEDIA


@pytest.fixture(scope="module")
def known() -> dict[str, float]:
    """AUROC of the best possible model of each subset of the media, over a population."""
    return evidence.population("complementary")["auroc"] | {"": 0.5}


def results(root) -> list[tuple[str, dict]]:
    found = []
    for path in sorted((root / "metrics/weld").glob("*.json")):
        content = json.loads(path.read_text())
        found += list(content.get("rows", {content["model"]: content}).items())
    return found


def test_no_model_knows_more_than_there_is_to_know(root, known):
    """The lower end of a model's interval lies below the best that its media allow; a control that sees no medium is held to chance."""
    judged = [(row, result) for row, result in results(root) if "refused" not in result]
    assert len(judged) > 15
    for row, result in judged:
        seen = [name for name in MEDIA if name in result["modalities"]]
        best = known["+".join(seen) if len(seen) < len(MEDIA) else "all"]
        found = result["categories"]["all"]["roc_auc"]
        assert found["low"] <= best + 0.005, f"{row}: {found} with {seen or 'no medium'}, of which at most {best:.3f} can be known"
