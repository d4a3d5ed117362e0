"""The note: one to three sentences of an inspector, in one of three hands; about what was seen or heard, about something else, at times mistaken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.datasets.station_media.evidence import KINDS
from stages.datasets.station_media.process import Scene

HESITANT = {
    "crack": (
        "Possibly a hairline near one of the holes.",
        "A thin dark line on the face, might be only a scratch.",
        "Faint line at a hole, hard to tell.",
    ),
    "burn": ("Slight straw tint on the face.", "A little discoloured, maybe from heat.", "Light yellow tinge, could be the lamp."),
    "chatter": ("Surface feels a bit rippled.", "Sounded a little rough during the cut.", "Perhaps some fine waves on the face."),
    "bearing": ("Spindle sounded slightly dry.", "A soft ticking now and then.", "Maybe a faint knock from the headstock."),
    "coolant": ("Coolant seemed a bit thin.", "Some drying marks on the face.", "Flow looked weaker than usual for a moment."),
    "tool": ("Tool edge may be chipped.", "One mark on the face that the tool may have left.", "Sparks looked odd once."),
    "wobble": ("Part seemed to run slightly out.", "Not sure it was clamped square.", "Bore looks a touch off centre."),
    "burr": ("Edge of the bore feels a little sharp.", "Maybe a small burr on one hole.", "Edges slightly rough to the finger."),
}
PLAIN = {
    "crack": (
        "Crack running out from a bolt hole.",
        "Clear crack on the face.",
        "Cracked at the hole, do not ship.",
        "Branching crack across the face.",
    ),
    "burn": (
        "Face is burnt blue.",
        "Strong heat discolouration beside the bore.",
        "Burn mark, part ran hot.",
        "Blue and brown heat marks.",
    ),
    "chatter": ("Heavy chatter marks.", "Machine howled through the whole cut, face is rippled.", "Deep waves all round, loud chatter."),
    "bearing": (
        "Loud knocking from the spindle bearing.",
        "Bearing is going, knocks at every turn.",
        "Rim came out lobed, spindle rattles.",
    ),
    "coolant": (
        "Coolant stopped in the middle of the cut.",
        "No coolant for a while, part smoked.",
        "Dry stains all over, pump lost pressure.",
    ),
    "tool": ("Tool broke during the cut.", "Insert snapped, deep groove on the face.", "Bang and a shower of sparks, tip is gone."),
    "wobble": ("Part wobbled badly in the chuck.", "Bore is off centre, runout far too large.", "Clamping slipped, part ran out of true."),
    "burr": (
        "Sharp burr all round the bore.",
        "Heavy burrs on the holes, cut my glove.",
        "Burr on every edge, needs rework.",
        "Thick raised edge at the bore.",
    ),
}
FINE = ("Looks good.", "Nothing to report.", "Part is fine.", "Face clean, edges smooth.", "No cracks seen.", "No burrs, no burn marks.", "OK.", "Good finish.",
        "Sounds normal.", "Checked bore and holes, all right.", "No chatter, coolant running well.", "Within tolerance.", "Passed visual check.")  # fmt: skip
OTHER = ("Lamp above the station flickers.", "Chips need emptying soon.", "Swapped gloves before this part.", "Trolley was late again.",
         "Printer out of paper.",
         "Measured with the new gauge.", "Drawer of inserts almost empty.", "Visitors at the line.", "Cleaned the lens.", "Radio on.",
         "Oil on the floor by the door.", "Second pallet of the batch.", "Forklift passing by.", "Colleague took over at half past.")  # fmt: skip
CLIPPED = {"nothing to report.": "nothing.", "part is fine.": "fine.", "looks good.": "ok."}


def write_note(scene: Scene) -> str:
    """Kinds that are mentioned, the plain ones first; where there is none, mostly that all is well; often something else."""
    draw = scene.draw("note")
    told = [kind for level in (2, 1) for kind in KINDS if scene.level[kind] == level]
    sentences = [_pick((HESITANT, PLAIN)[scene.level[kind] - 1][kind], draw) for kind in told]
    if not told and draw.random() < 0.8:
        sentences.append(_pick(FINE, draw))
    if draw.random() < 0.45 or not sentences:
        sentences.insert(int(draw.integers(len(sentences) + 1)), _pick(OTHER, draw))
    if draw.random() < 0.25:
        sentences.insert(0, f"Part {int(draw.integers(100, 999))}.")
    return _in_hand(" ".join(sentences[:3] if len(told) < 3 else sentences), scene.shift.hand)


def _pick(phrases: Sequence[str], draw: np.random.Generator) -> str:
    return phrases[int(draw.integers(len(phrases)))]


def _in_hand(text: str, hand: int) -> str:
    """Each inspector writes in a manner: whole sentences, all in small letters with dashes, or with a word ahead."""
    if hand == 0:
        return text
    if hand == 1:
        small = text.lower()
        for whole, clipped in CLIPPED.items():
            small = small.replace(whole, clipped)
        return small.rstrip(".").replace(". ", " - ")
    return f"Note: {text}"
