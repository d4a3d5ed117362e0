"""docs/series_data.md: its block runs as it stands, and its tables name what there is."""

import re
import subprocess
import sys

from stages.datasets import signal_adapters
from stages.datasets.injected import KINDS


def test_the_block_draws_the_picture(root, tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", (root / "docs/series_data.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "series_kinds.png").stat().st_size > 20_000


def test_every_adapter_and_every_kind_has_a_row_with_its_length(root):
    page = (root / "docs/series_data.md").read_text()
    for adapter in signal_adapters.known():
        assert f"| `{adapter}` |" in page
    for name, kind in KINDS.items():
        assert f"| `{name}` | {kind.shortest}-{kind.longest} |" in page


def test_every_code_in_the_code_has_a_row(root):
    sources = [path for path in (root / "stages/datasets").glob("s*.py")] + [root / "stages/prepare_series.py"]
    used = {code for path in sources for code in re.findall(r"E31\d", path.read_text())}
    assert used == set(re.findall(r"^\| (E31\d) \|", (root / "docs/series_data.md").read_text(), re.MULTILINE))
