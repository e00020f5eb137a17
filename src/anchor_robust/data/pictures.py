"""Pictures in files, and pictures side by side for the eye. Pillow reads and writes the formats."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..amplified import amplification
from ..errors import Refusal, one_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

MODES = {1: "L", 3: "RGB"}
PANEL = 256  # pixels of a panel's longer side, about: small pictures are enlarged by a whole number
GAP, STRIP, FONT = 8, 24, 14  # pixels: between panels, of the strip for their captions, of its letters


def pillow() -> ModuleType:
    """The module PIL.Image."""
    try:
        from PIL import Image
    except ImportError as error:
        raise Refusal("pictures need pillow, which is not installed; pip install pillow") from error
    return Image


def read(path: str | Path, shape: tuple[int, int, int]) -> tuple[Tensor, str]:
    """The picture in a file as uint8 [c h w] of `shape`, and in words what was done to it for that; empty if nothing.

    A picture of other proportions is cut to those of `shape` around its centre, and one of another size is resized.
    Raises Refusal for a file that is missing, broken, no picture or of more than 8 bits, and for 2 or more than 3
    channels.
    """
    channels, height, width = shape
    if channels not in MODES:
        raise Refusal(f"the model takes {channels} channels; allowed for pictures: 1 (grey) or 3 (red, green, blue)")
    image, done = opened(path), []
    if image.mode in ("LAB", "HSV"):
        raise Refusal(f"{path} is in {image.mode} colours; save it as RGB and give that")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = pillow().new("RGBA", image.size, "white")
        image = pillow().alpha_composite(white, image)
        done.append("laid on white")
    if image.mode != MODES[channels]:
        done += ["turned grey"] if channels == 1 and image.mode != "1" else []
        image = image.convert(MODES[channels])
    if image.size != (width, height):
        done += ["cut to its centre"] if image.width * height != image.height * width else []
        done.append(f"resized from {image.width}x{image.height} to the model's {width}x{height}")
        image = fitted(image, width, height)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, channels).permute(2, 0, 1).contiguous(), ", ".join(done)


def opened(path: str | Path) -> "Image":
    """The picture in a file, turned as its camera was held."""
    image_of = pillow()
    from PIL import ImageOps

    # Pillow warns of pictures half as large as it refuses; this one is the user's own.
    unwarned = warnings.catch_warnings(action="ignore", category=image_of.DecompressionBombWarning)
    try:
        with unwarned, image_of.open(path) as file:
            deep = any(";16" in str(tile) for tile in file.tile)  # colours of 16 bits, which would lose 8 in silence
            image = ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise Refusal(f"{path} does not exist; give a picture, such as a PNG or JPEG file") from None
    except Exception as error:  # a broken file can fail anywhere in the reader
        raise Refusal(f"{path} cannot be read ({one_line(error)}); give a picture, such as a PNG or JPEG") from error
    if deep or image.mode.startswith("I") or image.mode == "F":
        raise Refusal(f"{path} has more than 8 bits a channel; save it with 8 and give that")
    return image


def fitted(image: "Image", width: int, height: int) -> "Image":
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def png(picture: Tensor) -> bytes:
    """A picture, uint8 [c h w] of 1 or 3 channels, as the bytes of a PNG file, which loses nothing."""
    return encoded(as_image(picture))


def as_image(picture: Tensor) -> "Image":
    return pillow().fromarray(picture.permute(1, 2, 0).squeeze(2).contiguous().cpu().numpy())


def encoded(image: "Image") -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def times(clean: Tensor, attacked: Tensor) -> int:
    """How many times larger than it is what was changed is shown."""
    return amplification(int((attacked.short() - clean.short()).abs().max()))


def panels(clean: Tensor, attacked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Clean, the perturbation amplified around grey, attacked: each uint8 like `clean` and `attacked`, [... h w]."""
    change = attacked.short() - clean.short()
    return clean, (128 + times(clean, attacked) * change).clamp(0, 255).byte(), attacked


def enlarged(pictures: Tensor) -> Tensor:
    """Pictures [... h w] with every pixel repeated until the longer side has about PANEL pixels; large ones as is."""
    factor = max(1, PANEL // max(pictures.shape[-2:]))
    return pictures.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def grid(clean: Tensor, attacked: Tensor) -> Tensor:
    """Pictures uint8 [n c h w] and their attacked versions: a row of panels each, in white lines, uint8 [3 H W]."""
    framed = [F.pad(panel, (1, 1, 1, 1), value=255) for panel in panels(clean, attacked)]
    rows = torch.cat(framed, dim=3)
    return enlarged(rows).transpose(0, 1).flatten(1, 2).expand(3, -1, -1)


def side_by_side(clean: Tensor, attacked: Tensor, captions: Sequence[str]) -> bytes:
    """A PNG of the three panels of one picture, uint8 [c h w], with a caption below each."""
    from PIL import Image, ImageDraw

    images = [as_image(enlarged(panel)).convert("RGB") for panel in panels(clean, attacked)]
    width, height = images[0].size
    sheet = Image.new("RGB", (3 * width + 4 * GAP, height + 2 * GAP + STRIP), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = GAP + place * (width + GAP)
        sheet.paste(image, (left, GAP))
        draw.text((left, height + GAP + GAP // 2), shortened(caption, draw, width), fill="black", font_size=FONT)
    return encoded(sheet)


def shortened(caption: str, draw: "ImageDraw", width: int) -> str:
    """The caption, or as much of it as has room."""
    for length in range(len(caption), 0, -1):
        kept = caption if length == len(caption) else f"{caption[:length]}..."
        if draw.textlength(kept, font_size=FONT) <= width:
            return kept
    return ""
