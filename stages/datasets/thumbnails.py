"""A few images of every category and type on one sheet, to see at a glance whether a folder holds what its name says."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stages.datasets.images import read_image
from stages.datasets.samples import Sample

SIDE = 112  # pixels of a thumbnail
COLUMNS = 8
CAPTION = 20
GAP = 4


def thumbnails(root: Path, samples: Sequence[Sample]) -> bytes:
    """PNG with a row for each (category, split, defect type): its first COLUMNS images, uncropped, under a caption with how many there are."""
    rows: dict[str, list[Sample]] = {}
    for sample in samples:
        rows.setdefault(f"{sample.category} / {sample.split or 'all'} / {sample.defect_type}", []).append(sample)
    height = SIDE + CAPTION + GAP
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, max(1, len(rows)) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for row, (title, members) in enumerate(rows.items()):
        pen.text((GAP, row * height + 2), f"{title}: {len(members)}", fill="black", font=font)
        for column, sample in enumerate(members[:COLUMNS]):
            picture = Image.fromarray(read_image(root / sample.image_path))
            picture.thumbnail((SIDE, SIDE))
            sheet.paste(picture, (GAP + column * (SIDE + GAP), row * height + CAPTION))
    png = io.BytesIO()
    sheet.save(png, format="png")
    return png.getvalue()
