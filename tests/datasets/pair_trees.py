"""Small trees in the layout of data sets of pairs."""

import gzip
import json

from PIL import Image


def mimic_tree(folder, official=True):
    """Twelve patients with one to three studies; the report says whose it is. Returns {study: patient}."""
    owner, table = {}, ["dicom_id,study_id,subject_id,split"]
    for number in range(12):
        patient, split = f"1000{number:04d}", ("train", "validate", "test")[number % 3]
        for visit in range(1 + number % 3):
            study = f"5{number:03d}{visit}"
            place = folder / "files" / "p10" / f"p{patient}" / f"s{study}"
            place.mkdir(parents=True)
            for picture in ("b", "a"):
                Image.new("L", (8, 8), number * 20).save(place / f"{picture}-{study}.jpg")
            place.with_suffix(".txt").write_text(f"FINAL REPORT of {patient}, study {study}")
            owner[study] = patient
            table.append(f"a-{study},{study},{patient},{split}")
    if official:
        (folder / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(gzip.compress("\n".join(table).encode()))
    return owner


def diff_tree(folder, pairs=10):
    for place in ("annotations", "resized_images"):
        (folder / place).mkdir()
    for at, split in enumerate(("train", "val", "test")):
        names = [str(100 * at + number) for number in range(pairs)]
        said = [{"img_id": name, "sentences": [f"the car of {name} is gone", "a person appears"]} for name in names]
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(said))
        for name in names:
            for end in ("", "_2"):
                Image.new("RGB", (8, 8), (int(name) % 255, 0, 50 if end else 0)).save(folder / "resized_images" / f"{name}{end}.png")
