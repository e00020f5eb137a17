"""Pictures in files: what the model is given of them, what is said about it, and that PNG loses nothing."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anchor_robust.data import pictures
from anchor_robust.errors import Refusal

SHAPE = (3, 32, 32)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", (1, 3))
def test_a_png_gives_back_every_pixel(channels: int, tmp_path: Path) -> None:
    picture = torch.from_numpy(noise(channels, 5, 7))
    (tmp_path / "saved.png").write_bytes(pictures.png(picture))
    read, note = pictures.read(tmp_path / "saved.png", (channels, 5, 7))
    assert torch.equal(read, picture)
    assert note == ""
    by_pillow = np.asarray(Image.open(tmp_path / "saved.png"))
    assert np.array_equal(by_pillow.reshape(5, 7, channels), picture.permute(1, 2, 0).numpy())


def test_a_larger_picture_is_cut_to_its_centre_and_resized(tmp_path: Path) -> None:
    wide = np.zeros((64, 128, 3), dtype=np.uint8)
    wide[:, 32:96] = (200, 100, 50)  # all that lies in the central square
    Image.fromarray(wide).save(tmp_path / "wide.png")
    read, note = pictures.read(tmp_path / "wide.png", SHAPE)
    assert note == "cut to its centre, resized from 128x64 to the model's 32x32"
    assert read.shape == SHAPE
    # The filter reaches over the edges of the cut.
    assert (read[:, :, 2:-2] == torch.tensor([200, 100, 50]).view(3, 1, 1)).all()
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "square.png")
    assert pictures.read(tmp_path / "square.png", SHAPE)[1] == "resized from 64x64 to the model's 32x32"


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    clear = np.zeros((32, 32, 4), dtype=np.uint8)
    clear[:16, :, 0], clear[:16, :, 3] = 255, 255  # the upper half red, the lower half clear
    Image.fromarray(clear).save(tmp_path / "clear.png")
    read, note = pictures.read(tmp_path / "clear.png", SHAPE)
    assert note == "laid on white"
    assert read[:, 0, 0].tolist() == [255, 0, 0]
    assert read[:, 31, 0].tolist() == [255, 255, 255]


def test_colours_turn_grey_for_a_model_of_one_channel_and_grey_serves_three(tmp_path: Path) -> None:
    Image.fromarray(noise(32, 32, 3)).save(tmp_path / "colour.png")
    Image.fromarray(noise(32, 32)).save(tmp_path / "grey.png")
    grey, note = pictures.read(tmp_path / "colour.png", (1, 32, 32))
    assert grey.shape == (1, 32, 32)
    assert note == "turned grey"
    tripled, note = pictures.read(tmp_path / "grey.png", SHAPE)
    assert note == ""
    assert torch.equal(tripled, torch.from_numpy(noise(32, 32)).expand(3, -1, -1))


def test_a_photo_is_turned_as_the_camera_was_held(tmp_path: Path) -> None:
    image = Image.fromarray(noise(32, 32, 3))
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.png", exif=exif)
    read, _ = pictures.read(tmp_path / "turned.png", SHAPE)
    assert torch.equal(read, torch.from_numpy(noise(32, 32, 3)).permute(2, 0, 1).flip(1, 2))


def test_a_large_picture_is_read_without_a_warning_and_one_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(noise(32, 32, 3)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    assert pictures.read(tmp_path / "large.png", SHAPE)[1] == ""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(Refusal, match="cannot be read"):
        pictures.read(tmp_path / "large.png", SHAPE)


def deep_png(path: Path) -> None:
    """A PNG of 16 bits a channel in colour, which Pillow reads, with 8, and does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"".join(b"\0" + bytes(range(192)) for _ in range(32)))
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def test_what_is_no_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.png").write_text("no picture")
    whole = io.BytesIO()
    Image.fromarray(noise(32, 32, 3)).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:200])
    Image.fromarray(noise(32, 32).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    deep_png(tmp_path / "colours.png")
    assert Image.open(tmp_path / "colours.png").convert("RGB").size == (32, 32)
    for name, hint in (
        ("nowhere.png", "nowhere.png does not exist"),
        ("text.png", "text.png cannot be read"),
        ("cut.png", "cut.png cannot be read"),
        ("deep.png", "more than 8 bits"),
        ("colours.png", "more than 8 bits"),
        (".", "cannot be read"),
    ):
        with pytest.raises(Refusal, match=hint):
            pictures.read(tmp_path / name, SHAPE)
    with pytest.raises(Refusal, match="4 channels"):
        pictures.read(tmp_path / "text.png", (4, 32, 32))
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(Refusal, match="pip install pillow"):
        pictures.read(tmp_path / "text.png", SHAPE)


@pytest.mark.parametrize("largest, times", ((12, 10), (20, 6), (155, 1)))
def test_panels_show_the_change_around_grey_as_large_as_has_room(largest: int, times: int) -> None:
    clean = torch.tensor([100, 100, 100, 100, 250], dtype=torch.uint8).view(1, 1, 5)
    attacked = torch.tensor([100, 107, 93, 100 + largest, 255], dtype=torch.uint8).view(1, 1, 5)
    shown = pictures.panels(clean, attacked)
    assert torch.equal(shown[0], clean)
    assert pictures.times(clean, attacked) == times
    moved = [0, 7, -7, largest, 5]
    assert shown[1].flatten().tolist() == [min(128 + times * move, 255) for move in moved]
    assert torch.equal(shown[2], attacked)


def test_a_grid_has_a_row_for_each_picture() -> None:
    clean, attacked = torch.from_numpy(noise(2, 4, 3, 32, 32)).unbind()
    shown = pictures.grid(clean, attacked)
    factor = shown.shape[2] // (3 * 34)
    assert shown.shape == (3, 4 * 34 * factor, 3 * 34 * factor)
    small = shown[:, ::factor, ::factor]
    assert torch.equal(small[:, 1:33, 1:33], clean[0])
    assert torch.equal(small[:, 103:135, 69:101], attacked[3])


def test_side_by_side_holds_three_enlarged_panels() -> None:
    clean, attacked = torch.from_numpy(noise(2, 3, 8, 8)).unbind()
    image = Image.open(io.BytesIO(pictures.side_by_side(clean, attacked, ("cat", "change", "x" * 500))))
    assert image.width > 3 * 256
    pixels = np.asarray(image)
    assert pixels[8 + 5, 8 + 5].tolist() == clean[:, 0, 0].tolist()
    assert pixels[8 + 5, 8 + 2 * (256 + 8) + 5].tolist() == attacked[:, 0, 0].tolist()
    beside = pixels[8 + 256 :, -8:]
    assert (beside == 255).all(), "a long caption is cut"
