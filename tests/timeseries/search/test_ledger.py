import pytest

from stages.io import DamagedFile
from stages.timeseries.search.ledger import Ledger

LINES = [{"number": 3, "figures": {"val_roc_auc": 0.5}}, {"number": 1, "refused": "too few µs"}]


@pytest.fixture
def path(tmp_path):
    ledger = Ledger(tmp_path / "quick.jsonl")
    for line in LINES:
        ledger.add(line)
    return ledger.path


def test_what_was_added_is_read_again_in_its_order(path):
    assert list(Ledger(path).finished.values()) == LINES


def test_half_a_line_is_cut_off_and_said_wherever_the_writer_was_killed(path):
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first + 1, len(whole)):
        path.write_bytes(whole[:end])
        ledger = Ledger(path)
        assert ledger.torn and list(ledger.finished.values()) == LINES[:1], end
        ledger.add(LINES[1])
        assert path.read_bytes() == whole and not Ledger(path).torn


def test_a_whole_line_that_is_not_json_is_refused(path):
    path.write_bytes(b"{]\n" + path.read_bytes())
    with pytest.raises(DamagedFile, match=r"quick\.jsonl"):
        Ledger(path)
