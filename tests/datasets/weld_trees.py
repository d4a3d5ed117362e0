"""A small folder in the layout of the welding release, written file by file, with any of its traps."""

from fractions import Fraction

import numpy as np
from PIL import Image

HEADER = "Date,Time,Part No,Pressure,CO2 Weld Flow,Feed,Primary Weld Current,Wire Consumed,Secondary Weld Voltage,Remarks"
MANIFEST = "CATEGORY,WELD_TYPE,THICKNESS_MM,STEEL_TYPE,SAMPLES,CURRENT_A,VOLTAGE_V,GAS_BAR,ROBOT_SPEED_CPM,DIRECTORY,SUBDIRS,SPLIT"
ROWS_A_SECOND = 8


def write_tree(root, kinds=(("Good", "00"), ("Good", "00"), ("Undercut", "03"), ("Crater_Cracks", "11")), welds=2, **options):
    """One session for each of `kinds` (category and code), `welds` parts each: [(session, part)]. options: of `write_weld`."""
    places, lines = [], [MANIFEST]
    for number, (kind, code) in enumerate(kinds):
        session = f"s{number:02d}"
        for part in range(welds):
            name = f"08-17-22-{number:04d}-{part:02d}-{code}"
            places.append((session, name))
            lines.append(f"{kind},fillet,7,Fe410,{welds},{180 + number},24.5,1.8,32{number},{session},{session}/{name},TRAIN")
            write_weld(root, session, name, seed=len(places), **options)
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return places


def write_weld(root, session, name, seed=0, *, seconds=3.0, arc=(0.75, 2.5), photos=5, rate=16000):
    """All files of one weld: before and after the arc there is no current, little light and little noise."""
    place = root / session / name
    (place / "images").mkdir(parents=True, exist_ok=True)
    write_log(place / f"{name}.csv", log_rows(seconds, arc, seed), part=name)
    write_arc_film(place / f"{name}.avi", seconds, arc, seed)
    write_flac(place / f"{name}.flac", arc_sound(seconds, arc, seed, rate), rate)
    for number in range(photos):
        pixels = np.random.default_rng((seed, number)).integers(60, 90, (45, 100, 3), np.uint8)
        pixels[20:25, 10:90] = 150 + 10 * number
        Image.fromarray(pixels).save(place / "images" / f"view_{number}.jpg", quality=90)
    return place


def log_rows(seconds=3.0, arc=(0.75, 2.5), seed=0):
    """(T, 7): seconds, and six sensors in the order of the header."""
    time = np.arange(round(seconds * ROWS_A_SECOND)) / ROWS_A_SECOND
    burning = (time >= arc[0]) & (time < arc[1])
    noise = np.random.default_rng(seed).normal(size=(len(time), 3))
    columns = [1.8 + 0.01 * noise[:, 0], 15.0 * burning, 70.0 * burning, burning * (180 + noise[:, 1]), np.cumsum(burning) * 1.0, burning * (24 + noise[:, 2])]
    return np.column_stack([time, *columns])


def write_log(path, rows, part="p", header=HEADER, separator=","):
    """rows: as of `log_rows`; NaN becomes an empty cell."""
    lines = [header.replace(",", separator)]
    for time_s, *values in rows:
        clock = f"09:{int(time_s // 60):02d}:{time_s % 60:06.3f}"
        cells = [f"{value:.4f}" if np.isfinite(value) else "" for value in values]
        cells = [cell.replace(".", ",") for cell in cells] if separator != "," else cells
        lines.append(separator.join(["2022-08-17", clock, part, *cells, ""]))
    path.write_text("\n".join(lines) + "\n")
    return path


def arc_sound(seconds, arc, seed, rate=16000):
    time = np.arange(round(seconds * rate)) / rate
    level = np.where((time >= arc[0]) & (time < arc[1]), 0.2, 0.002)
    return level * np.random.default_rng(seed).normal(size=len(time)).clip(-3, 3)


def write_flac(path, samples, rate=16000):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=rate, layout="mono", format="s16")
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype("<i2")[None], format="s16", layout="mono")
        frame.rate, frame.pts = rate, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_arc_film(path, seconds, arc, seed=0, rate=8, size=(48, 32)):
    """Grey: dark, by the seed a little less so, and with a glow in the middle while the arc burns."""
    import av

    draw = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuvj420p"
        for number in range(round(seconds * rate)):
            pixels = draw.integers(10, 16, (size[1], size[0], 3), np.uint8) + np.uint8(20 * (seed % 3))
            if arc[0] <= number / rate < arc[1]:
                pixels[8:24, 12:36] = 220 + draw.integers(0, 20)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
