"""On generated welds whose clocks begin up to 2 s apart the lags are found from the media themselves."""

import numpy as np
import pytest
import torch

from stages import io
from stages.datasets import weld
from stages.datasets.media import read_grey_film
from stages.datasets.records import Record, Tokens, packed
from stages.datasets.weld_files import read_log
from stages.encoders.media import arc_sound, sensor_steps
from stages.fusion.deep.maths.aligner import Aligner

OPTIONS = {"sessions": 36, "welds_per_session": 4, "film_size": 32, "photo_size": 48, "missing_rate": 0.0, "missing_views": 0.0}
CLOCK_S = 12.0  # about the length of a record; each record's own is used for what is found


def film(path) -> Tokens:
    """Brightness in 4 x 4 fields of every frame, on the film's own clock."""
    clip = read_grey_film(path, 4)
    time = torch.tensor(clip.time_s / max(clip.time_s[-1], 1e-9))
    return Tokens(torch.tensor(clip.frames).flatten(1).float(), time.float())


@pytest.mark.slow
def test_lags_up_to_two_seconds_are_found_within_a_fifth(tmp_path):
    made = weld.read_records(tmp_path, tmp_path, offset_s=2.0, **OPTIONS)
    oracle = {row["place"]: row for row in io.read_table(tmp_path / weld.ORACLE)}
    sound, sensors = arc_sound.build(None, onset=False, windows=64), sensor_steps.build(None, onset=False, steps=160)
    records, truth, length = [], [], []
    for row in made.rows:
        paths = {name: tmp_path / path for name, path in row.paths.items()}
        known = oracle[str(paths["series"].parent.relative_to(tmp_path))]
        seconds = float(read_log(paths["series"]).time_s[-1])
        if seconds > known["arc_s"] + 5:
            continue  # the clock of its sensors jumps, which no shift can mend
        tokens = {"series": sensors([paths["series"]])[0], "audio": sound([paths["audio"]])[0], "video": film(paths["video"])}
        records.append(Record(row.record_id, tokens, row.label))
        truth.append([known[f"arc_on_s_{name}"] - known["arc_on_s_series"] for name in ("audio", "video")])
        length.append(seconds)
    given = packed(records, {name: one.values.shape[1] for name, one in records[0].modalities.items()})
    learnt, held_out = list(range(0, len(records), 2)), list(range(1, len(records), 2))
    aligner = Aligner(given.widths, clock_s=CLOCK_S)
    aligner.prime(given.take(learnt).tokens)
    with torch.no_grad():
        lags = aligner.lags(given.take(held_out).tokens)
    for number, name in enumerate(("audio", "video")):
        wanted = np.array(truth)[held_out, number]
        found = lags[name].numpy() * np.array(length)[held_out] / CLOCK_S
        assert np.abs(wanted).mean() > 0.5
        error = np.abs(found - wanted)
        print(name, "mean absolute lag", np.abs(wanted).mean().round(3), "error", error.mean().round(3), "worst", error.max().round(3))
        assert error.mean() < 0.2, name
