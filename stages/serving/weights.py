"""`assay weights`: where pretrained weights lie, how they cross an air gap, and how small ones are made here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import errors, params
from stages.serving.terminal import show

app = typer.Typer(no_args_is_help=True, help="Where pretrained weights lie, and how to bring missing ones across an air gap.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Images = Annotated[list[Path] | None, typer.Option(help="A folder of images to learn from; may be given more than once.")]
Prepared = Annotated[list[str] | None, typer.Option(help="A prepared data set whose training images are learnt from.")]
Folder = Annotated[Path | None, typer.Option(help="Local folder of weights; the key `backbones` of params.yaml by default.")]


@app.command("list")
def list_weights(backbones: Folder = None, as_json: Json = False) -> None:
    """Every known set of weights: present or absent, size, licence, and who uses it."""
    from stages.encoders import weights_bundle

    show(weights_bundle.list_weights(backbones_folder(backbones)), as_json, ("name", "place", "bytes", "licence"))


@app.command("verify")
def verify(backbones: Folder = None, as_json: Json = False) -> None:
    """Check the SHA-256 of every set of weights that is here. Exit code 1 where one is altered."""
    from stages.encoders import weights_bundle

    rows = weights_bundle.verify(backbones_folder(backbones))
    show(rows, as_json, ("name", "status", "detail"))
    raise typer.Exit(errors.MENDABLE if any(row["status"] == "altered" for row in rows) else errors.OK)


@app.command("pack")
def pack(
    names: Annotated[list[str], typer.Argument(help="Names from `assay weights list`, or any timm name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to fill, for instance on a USB stick.")],
    download: Annotated[bool, typer.Option(help="Fetch what is missing here. Only for a machine with network.")] = False,
    backbones: Folder = None,
    as_json: Json = False,
) -> None:
    """Gather weights with their checksums and licences into a folder that can be carried to another machine."""
    from stages.encoders import weights_bundle

    show(weights_bundle.pack(names, out, backbones_folder(backbones), download), as_json, ("name", "bytes", "sha256"))


@app.command("unpack")
def unpack(
    bundle: Annotated[Path, typer.Argument(help="The folder that `assay weights pack` filled.")],
    backbones: Folder = None,
    as_json: Json = False,
) -> None:
    """Take packed weights into the local folder, after checking every checksum."""
    from stages.encoders import weights_bundle

    show(weights_bundle.unpack(bundle, backbones_folder(backbones)), as_json, ("name", "bytes", "sha256"))


@app.command("distill-pdn")
def distill_pdn(
    name: Annotated[str, typer.Argument(help="Which network: a row of `assay weights list` that begins with pdn-.")] = "pdn-small",
    images: Images = None,
    dataset: Prepared = None,
    encoder: Annotated[str, typer.Option(help="Weights of the deep network to learn from, by name.")] = "efficientnet-lite0",
    image_size: Annotated[int, typer.Option(help="What the small network sees; the deep one sees twice that.")] = 256,
    steps: Annotated[int, typer.Option(help="Optimiser steps; the paper's by default.")] = 60_000,
    batch_size: int = 16,
    seed: int = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    backbones: Folder = None,
    as_json: Json = False,
) -> None:
    """Make the teacher of EfficientAD from a deep network that is here. Started again after a stop, it goes on."""
    from stages.encoders import distill_pdn, pretraining

    found, schedule = pretraining.find_pictures(images or [], dataset or []), {"steps": steps, "batch_size": batch_size, "seed": seed}
    made = distill_pdn.make(name, found, backbones_folder(backbones), encoder=encoder, image_size=image_size, device=device, **schedule)
    show([made._asdict()], as_json, ("name", "file", "steps", "loss", "constant"))


@app.command("train-vq")
def train_vq(
    name: Annotated[str, typer.Argument(help="Which network: a row of `assay weights list` that begins with vq-.")] = "vq-dsr",
    images: Images = None,
    dataset: Prepared = None,
    image_size: int = 256,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 100_000,
    batch_size: int = 16,
    seed: int = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    backbones: Folder = None,
    as_json: Json = False,
) -> None:
    """Make the codebooks and the general decoder of DSR from images. Started again after a stop, it goes on."""
    from stages.encoders import pretraining, train_vq

    found, schedule = pretraining.find_pictures(images or [], dataset or []), {"steps": steps, "batch_size": batch_size, "seed": seed}
    made = train_vq.make(name, found, backbones_folder(backbones), image_size=image_size, device=device, **schedule)
    show([made._asdict()], as_json, ("name", "file", "steps", "loss", "constant"))


@app.command("train-tiny-clip")
def train_tiny_clip(
    leave_out: Annotated[str, typer.Option(help="The category of `parts` that is not drawn, to judge it with.")] = "weave",
    pairs: Annotated[int, typer.Option(help="Parts of each category, each drawn good and damaged.")] = 120,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 120,
    batch_size: int = 48,
    seed: int = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    backbones: Folder = None,
    as_json: Json = False,
) -> None:
    """Make a small CLIP from generated pictures and sentences, to try zero-shot models without any other weights. Started again after a stop, it goes on."""
    from stages.encoders import train_tiny_clip

    made = train_tiny_clip.make(
        backbones_folder(backbones), leave_out=leave_out, pairs=pairs, steps=steps, batch_size=batch_size, seed=seed, device=device
    )
    show([made._asdict()], as_json, ("name", "file", "steps", "loss", "constant"))


@app.command("check-clip")
def check_clip(
    name: Annotated[str, typer.Argument(help="Weights of a CLIP, as `assay weights list` has them.")],
    backbone: Annotated[str | None, typer.Option(help="The network that they are for; the lock knows that of its own rows.")] = None,
    backbones: Folder = None,
    as_json: Json = False,
) -> None:
    """Let a CLIP name what a few photographs show. Exit code 1 where its answers are wrong, so that nothing is built on it."""
    from stages.encoders import check_clip

    checked = check_clip.check(name, backbones_folder(backbones), backbone)
    show([answer._asdict() for answer in checked.answers], as_json, ("photograph", "right", "given", "sure"))
    if not as_json:
        typer.echo(f"{name} in {checked.backbone}: {checked.right} of {len(checked.answers)} photographs named rightly")


def backbones_folder(folder: Path | None) -> Path:
    return folder or (params.load().backbones_folder if params.PATH.is_file() else Path("backbones"))
