"""docs/weld.jpg: one generated weld as its four media saw it, on the clock of its arc, and the photographs of some others.

    python -m benchmarks.weld_picture docs/weld.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from stages.datasets import weld
from stages.datasets.weld_media import film, photos, process, sensors, sound
from stages.datasets.weld_media.evidence import DEFECTS, GOOD, MEDIA, anomaly, log_ratios, preset

SHOWN = "spatter"
BEADS = ("good", "undercut", "porosity", "burnthrough", "crater_cracks")
FRAMES = 12


def main(path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = weld.plan(0, 96, 5, "complementary", 0.0, 0.5, dict.fromkeys(MEDIA, 0.0), 0.0)
    at = _clear(drawn, SHOWN)
    figure = plt.figure(figsize=(11, 9.6), dpi=110, layout="constrained")
    lanes, beads = figure.subfigures(2, 1, height_ratios=(5.2, 5.4))
    rows = lanes.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": (1.1, 1.3, 1.3)})
    _film(rows[0], weld.scene(drawn, at, "video", 0))
    _sound(rows[1], weld.scene(drawn, at, "audio", 0))
    _sensors(rows[2], weld.scene(drawn, at, "series", 0))
    moment = drawn.timing.moments[at, drawn.evidence.slot[at]]
    for lane in rows:
        lane.axvline(moment, color="tab:red", lw=1, ls=":")
        lane.set_xlim(-1, 9)
    rows[2].set_xlabel(f"seconds since the arc came on; the dotted line is where the defect ({SHOWN}) happens")
    grid = beads.subplots(len(BEADS), process.VIEWS)
    for row, name in zip(grid, BEADS, strict=True):
        number = _clear(drawn, name)
        pictures = photos.draw_photos(weld.scene(drawn, number, "image", 0), 160)
        for cell, picture in zip(row, pictures, strict=True):
            cell.imshow(photos.with_label(picture, process.CODES[name])[: int(160 * 0.97)], aspect="auto")
            cell.set_xticks([]), cell.set_yticks([])
        row[0].set_ylabel(name.replace("_", "\n"), fontsize=8)
    figure.savefig(path, pil_kwargs={"quality": 74})


def _clear(drawn: weld.Plan, name: str) -> int:
    """The weld of a class that its media show most plainly together."""
    ratios = log_ratios(drawn.evidence.x, preset("complementary"))[MEDIA]
    plain = ratios[:, DEFECTS.index(name)] if name in DEFECTS else -anomaly(ratios)
    return int(np.where(drawn.defect == (DEFECTS.index(name) if name in DEFECTS else GOOD), plain, -np.inf).argmax())


def _film(lane: Any, scene: process.Scene) -> None:
    shown = film.draw_film(scene, 64)
    moments = np.linspace(-0.4, 8.4, FRAMES)
    for moment in moments.tolist():
        frame = shown[min(max(round((moment + scene.on_s) * film.RATE), 0), len(shown) - 1)]
        lane.imshow(frame, cmap="gray", vmin=0, vmax=255, extent=(moment - 0.39, moment + 0.39, 0, 1), aspect="auto")
    lane.set_yticks([]), lane.set_ylim(0, 1)
    lane.set_ylabel("video", fontsize=9)


def _sound(lane: Any, scene: process.Scene) -> None:
    from scipy.signal import spectrogram

    heard = sound.draw_sound(scene)
    bands, times, power = spectrogram(heard, sound.RATE, nperseg=512, noverlap=256)
    lane.pcolormesh(times - scene.on_s, bands / 1000, 10 * np.log10(power + 1e-10), cmap="magma", vmin=-95, vmax=-55, rasterized=True)
    lane.set_ylabel("audio, kHz", fontsize=9)


def _sensors(lane: Any, scene: process.Scene) -> None:
    time, values = sensors.draw_sensors(scene)
    lane.plot(time - scene.on_s, values[:, 3], lw=0.9, color="tab:blue")
    lane.set_ylabel("series, A", fontsize=9, color="tab:blue")
    other = lane.twinx()
    for column, name, colour in ((1, "CO2, l/min", "tab:green"), (5, "voltage, V", "tab:orange"), (2, "feed", "tab:gray")):
        other.plot(time - scene.on_s, values[:, column], lw=0.8, color=colour, label=name)
    other.legend(fontsize=7, loc="center right")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
