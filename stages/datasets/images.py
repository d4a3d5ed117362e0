"""The only place that opens image files: any of them becomes (H, W, 3) uint8 RGB or a clear refusal, and there is one resizer.

Rules, the same for training and serving: EXIF orientation is applied; 16-bit values are scaled by 255/65535 (not clipped, and not stretched
per image, which would hide brightness); transparency is laid on black; palette, CMYK, grey and 1-bit images become RGB; of several frames
the first counts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.Image import Image as Picture

from stages.errors import UserError

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset({".bmp", ".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".tif", ".tiff", ".webp"})
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes for 16 bits per pixel


class UnreadableImage(UserError, ValueError):
    """A file that cannot be decoded in full; `cause` says why."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"E204 {path} cannot be read as an image: {cause}. Replace the file or remove it")
        self.path, self.cause = path, cause


def is_image_name(path: Path) -> bool:
    """True for names that should be images; dotfiles (also ._name of macOS) and Thumbs.db are not."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright. Raises UnreadableImage."""
    picture = _decode(path)
    if picture.mode in DEEP:
        deep = _deep_values(path, picture).astype(np.uint32)
        grey = ((deep * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(_on_black(path, picture))


def read_mask(path: Path, threshold: int = 0) -> np.ndarray:
    """(H, W) bool, True where the value exceeds `threshold` (0..254, on an 8-bit scale), at full size: binarise before any resize.

    Colour masks count by their brightest channel. Raises UnreadableImage.
    """
    picture = _decode(path)
    if picture.mode in DEEP:
        return _deep_values(path, picture) > threshold * 257
    return np.asarray(_on_black(path, picture)).max(axis=2) > threshold


def resize_image(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """The whole of an (H, W, 3) uint8 image as (size, size, 3) uint8, or (height, width, 3): no crop, the aspect ratio gives way.

    Antialiased bicubic in torch's uint8 kernel, the one torchvision v2 uses: within one level of Pillow at a third of the time.
    """
    import torch

    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (height, width):
        return image.copy()
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]  # (1, 3, H, W)
    resized = torch.nn.functional.interpolate(planes, (height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()


def resize_mask(mask: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """(H, W) bool to (size, size) or (height, width) bool: the value at the nearest pixel centre."""
    sides = (size, size) if isinstance(size, int) else size
    rows, columns = (((np.arange(side) + 0.5) * length / side).astype(np.int64) for side, length in zip(sides, mask.shape, strict=True))
    return mask[rows[:, None], columns]


def _decode(path: Path) -> Picture:
    """Opened, loaded in full and turned upright."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UnreadableImage(path, f"{picture.width} x {picture.height} pixels, more than the {MAX_PIXELS} allowed")
            picture.load()
            return ImageOps.exif_transpose(picture)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise almost any exception on damaged bytes, and document none of them
        raise UnreadableImage(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _on_black(path: Path, picture: Picture) -> Picture:
    if picture.mode == "F":
        raise UnreadableImage(path, "floating-point pixels; save it with 8 or 16 bits")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layered = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, (0, 0, 0, 255)), layered).convert("RGB")


def _deep_values(path: Path, picture: Picture) -> np.ndarray:
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage(path, f"32-bit values {values.min()}..{values.max()}; save it with 8 or 16 bits")
    return values
