"""What is wrong with a folder of welds, or treacherous in it, by stable codes.

E441 classes that are unknown or that contradict the part number, E442 photographs that are missing, E443 logs and media that cannot be read, E444 gaps in
a clock, E445 rates, E446 durations that disagree, E447 sessions across splits, E448 classes that can be read from names and photographs, E449 no arc.
A file that is not there at all is E420, as for every data set of records.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.datasets.intel_welding import CLASSES, CODES, GOOD, PHOTOS, Weld
from stages.datasets.media import read_header
from stages.datasets.record_errors import some
from stages.datasets.samples import DataError, Problem
from stages.datasets.weld_files import arc_on, photos, read_log

GAP_S = 2.0  # between two rows of a log
APART_S = 3.0  # between the durations of sensors, film and sound
RATES = {"audio": (16000, 16000), "video": (5, 120), "series": (4, 20)}  # lowest and highest: samples, frames, rows a second
SHOWN = 3
TELLING = 0.9  # share of sessions of one class, or of welds of the class that most with their code have: some are entered wrong


class Found(NamedTuple):
    """What lies in the folder of one weld."""

    photos: Sequence[str]  # POSIX, relative to the root
    seconds: Mapping[str, float]  # modality -> how long it is; only of those that were looked into
    rates: Mapping[str, float]
    gap_s: float  # the largest in the log
    arc: bool  # whether the current ever rises; True where nobody looked
    unreadable: Mapping[str, str]  # modality -> why


def look(root: Path, weld: Weld, open_media: bool = True) -> Found:
    """Files that are not there are passed over."""
    pictures = [path.relative_to(root).as_posix() for path in photos(root / weld.place / PHOTOS)]
    seconds, rates, unreadable = {}, {}, {}
    gap, arc = 0.0, True
    here = {name: root / weld.path(name) for name in ("series", "audio", "video")} if open_media else {}
    for name, path in here.items():
        if not path.is_file() or not path.stat().st_size:
            continue
        try:
            if name == "series":
                log = read_log(path)
                steps = np.diff(log.time_s)
                gap, arc = float(steps.max(initial=0)), arc_on(log) is not None
                seconds[name], rates[name] = round(float(log.time_s[-1]), 3), 1 / max(float(np.median(steps)) if len(steps) else 0, 1e-9)
            else:
                header = read_header(path, name)
                rates[name] = header.rate
                seconds |= {} if header.seconds is None else {name: header.seconds}
        except DataError as error:
            unreadable[name] = str(error)
    return Found(pictures, seconds, rates, gap, arc, unreadable)


def problems(welds: Sequence[Weld], found: Mapping[str, Found], views: int, official: bool) -> list[Problem]:
    """All of them, in order of their codes."""
    of = [(weld, found[weld.record_id]) for weld in welds]
    return [*_classes(welds), *_photos(of, views), *_media(of), *_sessions(welds, official), *_readable_classes(of), *_arcs(of)]


def _warned(code: str, places: Sequence[str], what: str, fix: str, told: Sequence[str] = ()) -> Problem:
    """told: what is listed of each place, in the place of its name."""
    return Problem(code, "warning", places[0], f"{what}: {len(places)} ({some(list(told or places), SHOWN)})", fix)


def _measured(code: str, found: Sequence[tuple[str, str]], what: str, fix: str) -> Problem:
    """found: places and a figure of each."""
    return _warned(code, [place for place, _ in found], what, fix, [f"{place} {figure}" for place, figure in found])


def _classes(welds: Sequence[Weld]) -> Iterator[Problem]:
    if unknown := [weld.place for weld in welds if weld.kind not in CLASSES]:
        yield _warned("E441", unknown, "welds of a class that the release does not have", "Correct CATEGORY; they count as a defect of that name")
    if wrong := [weld.place for weld in welds if CODES.get(weld.part[-2:], weld.kind) != weld.kind]:
        yield _warned("E441", wrong, "welds whose CATEGORY is not that of the code at the end of their part number",
                      "Look at their photographs; CATEGORY counts")  # fmt: skip
    kinds = defaultdict(Counter)
    for weld in welds:
        if weld.part[-2:] not in CODES:
            kinds[weld.part[-2:]][weld.kind] += 1
    if mixed := [f"{code}: {', '.join(sorted(counted))}" for code, counted in sorted(kinds.items()) if code.isdigit() and len(counted) > 1]:
        yield _warned("E441", mixed, "codes of part numbers that stand for several classes", "Compare CATEGORY with the part numbers")


def _photos(of: Sequence[tuple[Weld, Found]], views: int) -> Iterator[Problem]:
    if without := [weld.place for weld, one in of if not one.photos]:
        yield _warned("E442", without, "welds without photographs", "They go on without that modality")
    if fewer := [weld.place for weld, one in of if 0 < len(one.photos) < views]:
        yield _warned("E442", fewer, f"welds with fewer than {views} photographs", "Angles that are missing are masked; set `views` if fewer are meant")


def _media(of: Sequence[tuple[Weld, Found]]) -> Iterator[Problem]:
    if bad := [(weld.path(name), why) for weld, one in of for name, why in one.unreadable.items()]:
        whys = [why.rstrip(".") for _, why in bad]  # each names its file
        yield _warned("E443", [place for place, _ in bad], "files that cannot be read", "Copy them again; extract_records leaves them out", whys)
    if gaps := [(weld.path("series"), f"{one.gap_s:.1f} s") for weld, one in of if one.gap_s > GAP_S]:
        yield _measured("E444", gaps, f"logs whose clock jumps by more than {GAP_S:g} s", "No steps are made up within a gap; the encoder leaves it out")
    for name, (least, most) in RATES.items():
        if wrong := [(weld.path(name), f"{one.rates[name]:.5g}") for weld, one in of if name in one.rates and not least <= one.rates[name] <= most]:
            expected = f"{least}" if least == most else f"{least} to {most}"
            yield _measured("E445", wrong, f"files of {name} at a rate other than {expected} a second", "They are resampled; look whether they were cut")
    if apart := [(weld.place, f"{_spread(one):.1f} s") for weld, one in of if _spread(one) > APART_S]:
        yield _measured("E446", apart, f"welds whose sensors, film and sound differ by more than {APART_S:g} s in length",
                      "Look whether one was cut; set `onset: true` of the encoders, which aligns them on the arc")  # fmt: skip


def _spread(found: Found) -> float:
    return max(found.seconds.values(), default=0) - min(found.seconds.values(), default=0)


def _sessions(welds: Sequence[Weld], official: bool) -> Iterator[Problem]:
    splits, kinds = defaultdict(set), defaultdict(set)
    for weld in welds:
        splits[weld.session] |= {weld.split} - {None}
        kinds[weld.session].add(weld.kind)
    if crossing := sorted(session for session, names in splits.items() if len(names) > 1):
        told = "the manifest of Assay takes the welds that train shares with the judged out of train" if official else "it is not used, only noted"
        yield _warned("E447", crossing, f"sessions that lie in several lists of the official split ({told})",
                      "Quote figures of whole sessions (`split: none`) beside any of this split")  # fmt: skip
    own = sorted(session for session, names in kinds.items() if len(names) == 1)
    if len(kinds) > 1 and len(own) >= TELLING * len(kinds):
        yield _warned("E447", own, "sessions with one class each, so that whatever tells a session tells the class",
                      "Never split a session, and look at the control that sees the session alone")  # fmt: skip


def _readable_classes(of: Sequence[tuple[Weld, Found]]) -> Iterator[Problem]:
    by_code = defaultdict(Counter)
    for weld, _ in of:
        by_code[weld.part[-2:]][weld.kind] += 1
    told = sum(max(kinds.values()) for kinds in by_code.values())
    if len({kinds.most_common(1)[0][0] for kinds in by_code.values()}) < 2 or told < TELLING * len(of) or not all(code.isdigit() for code in by_code):
        return
    what = "names of files tell the class by the last two digits of the part number, and the release has it on a paper label in every photograph"
    places = [weld.place for weld, one in of if one.photos] or [of[0][0].place]
    yield _warned("E448", places, what, "Records are called by a hash; set `crop` of the encoder of photographs so that the label is cut off")


def _arcs(of: Sequence[tuple[Weld, Found]]) -> Iterator[Problem]:
    if none := [weld.path("series") for weld, one in of if not one.arc]:
        kinds = Counter(GOOD if weld.kind == GOOD else "defect" for weld, one in of if not one.arc)
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        yield _warned("E449", none, f"logs whose current never rises above 5 A ({told})", "Their tokens count from the beginning of the record")
