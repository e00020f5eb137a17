"""anchor attack: what lies in the files still fools the model, and what is said of them is true."""

import dataclasses
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anchor_robust import attack_pictures as room
from anchor_robust import data, load
from anchor_robust.attack_pictures import attack_pictures, distinct
from anchor_robust.attacks import APGD, APGDT, PGD
from anchor_robust.cli import main
from anchor_robust.errors import Refusal
from anchor_robust.subject import Named

DIGITS = Path(__file__).parents[1] / "results" / "digits-anchor"
SHIPPED = "cifar10-resnet8-anchor"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve test digits as PNG files."""
    folder = tmp_path_factory.mktemp("digits")
    files = [folder / f"{place}.png" for place in range(12)]
    for file, image in zip(files, data.load("digits", "test").images, strict=False):
        Image.fromarray(image[0].numpy()).save(file)
    return files


def file_pixels(path: str | Path, channels: int) -> Tensor:
    """By Pillow alone: int64 [1 c h w]."""
    pixels = np.asarray(Image.open(path)).astype(np.int64)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)[None]


def answer(source: str | Path, pixels: Tensor) -> int:
    with torch.no_grad():
        return int(load(source)(pixels.float() / 255).argmax())


def test_the_file_fools_the_model_that_reads_it_back(digits: list[Path], tmp_path: Path) -> None:
    record = attack_pictures(digits, Named(str(DIGITS)), eps=0.3, out=tmp_path / "out")
    verdicts = [picture["verdict"] for picture in record["pictures"]]
    assert verdicts.count("fooled") > 6, "an eps of 0.3 fools this model nearly always"
    for file, picture in zip(digits, record["pictures"], strict=True):
        clean, saved = file_pixels(file, 1), file_pixels(picture["adversarial"], 1)
        moved = int((saved - clean).abs().max())
        assert moved == picture["levels"] <= 76, "floor(0.3 * 255)"
        before, after = answer(DIGITS, clean), answer(DIGITS, saved)
        assert picture["label"] == picture["before"][0][0] == str(before)
        assert picture["after"][0][0] == str(after)
        assert (picture["verdict"] == "fooled") == (after != before)


def test_shipped_weights_need_neither_network_nor_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*given: Any) -> None:
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(data, "load", refuse)
    rows, columns = np.mgrid[0:48, 0:64]
    photo = np.stack([rows * 4, columns * 3, 255 - rows * 4], axis=2).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    out = tmp_path / "out"
    words = ["attack", str(tmp_path / "photo.jpg"), "--run", SHIPPED, "--eps", "16/255", "--out", str(out)]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "cut to its centre, resized from 64x48 to the model's 32x32" in told
    assert "label: what the model answers before the attack; --label names another class" in told
    assert "moved    by at most 16 of 255 grey levels" in told
    assert sorted(path.name for path in out.iterdir()) == ["photo-attacked.png", "photo-compared.png"]
    prepared = data.pictures.read(tmp_path / "photo.jpg", (3, 32, 32))[0][None]
    saved = file_pixels(out / "photo-attacked.png", 3)
    assert int((saved - prepared).abs().max()) == 16
    fooled = answer(SHIPPED, saved) != answer(SHIPPED, prepared)
    assert ("fooled: read back from its file" in told) == fooled
    assert fooled, "eps 16/255 fools this model"


def test_l2_stays_in_its_ball(digits: list[Path], tmp_path: Path) -> None:
    record = attack_pictures(digits[:4], Named(str(DIGITS)), norm="l2", eps=1.0, out=tmp_path)
    for file, picture in zip(digits[:4], record["pictures"], strict=True):
        length = float((file_pixels(picture["adversarial"], 1) - file_pixels(file, 1)).double().norm())
        assert 200 < length <= 255 + 1e-6, "the ball is used, and not left"
        assert picture["distance"] == pytest.approx(length / 255, rel=1e-5)


def test_what_rounding_undoes_is_told(digits: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Undoing(room.GreyLevels):
        """A search that ends where it began."""

        def search(self, model: Any, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
            return x

    monkeypatch.setattr(room, "GreyLevels", Undoing)
    (picture,) = attack_pictures(digits[:1], Named(str(DIGITS)), eps=0.5, out=tmp_path)["pictures"]
    assert picture["verdict"] == "rounded"
    assert picture["levels"] == 0
    assert picture["after"] == picture["before"]


def test_what_the_search_does_not_find_is_held(digits: list[Path], tmp_path: Path) -> None:
    (picture,) = attack_pictures(digits[:1], Named(str(DIGITS)), eps=1 / 255, out=tmp_path)["pictures"]
    assert picture["verdict"] == "held"
    assert picture["levels"] == 1
    assert answer(DIGITS, file_pixels(picture["adversarial"], 1)) == int(picture["label"])


def test_a_picture_that_is_wrong_as_it_is_is_not_attacked(
    digits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PGD, "search", lambda *given: pytest.fail("attacked"))
    label = "1" if answer(DIGITS, file_pixels(digits[0], 1)) != 1 else "2"
    out = tmp_path / "out"
    assert main(["attack", str(digits[0]), "--run", str(DIGITS), "--label", label, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"label: {label}\n" in told
    assert f"as it is, not {label}" in told
    assert not list(out.iterdir())


def test_stages_follow_each_other_until_one_succeeds(
    digits: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    searched: list[str] = []
    real = APGD.search
    for kind in (APGD, APGDT):
        monkeypatch.setattr(kind, "search", lambda self, model, x, *_: searched.append(type(self).__name__) or x)
    words = ["attack", str(digits[0]), "--run", str(DIGITS), "--attack", "autoattack-preview", "--out", str(tmp_path)]
    assert main([*words, "--eps", "1/255"]) == 0
    assert searched == ["APGD"] + ["APGDT"] * 9
    searched.clear()
    monkeypatch.setattr(APGD, "search", real)
    assert main([*words, "--eps", "0.6"]) == 0
    assert searched == [], "the first found it"
    assert "AutoAttack (preview), linf eps 0.6, apgd-ce + apgd-t, saved with 8 bits" in capsys.readouterr().out


def linear() -> torch.nn.Module:
    """Somebody's model of the digits."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


def test_a_foreign_model_is_attacked_once_its_data_set_is_named(digits: list[Path], tmp_path: Path) -> None:
    foreign = Named(None, f"{__name__}:linear", data="digits", normalize="none")
    record = attack_pictures(digits[:1], foreign, eps=0.5, out=tmp_path)
    (picture,) = record["pictures"]
    assert picture["verdict"] == "fooled"
    with torch.no_grad():
        saved = linear()(file_pixels(picture["adversarial"], 1).float() / 255)
    assert str(int(saved.argmax())) == picture["after"][0][0] != picture["label"]


def test_no_picture_that_was_given_is_written_over(digits: list[Path], tmp_path: Path) -> None:
    files = [tmp_path / "one.png", tmp_path / "one-attacked.png"]
    for file, digit in zip(files, digits, strict=False):
        file.write_bytes(digit.read_bytes())
    with pytest.raises(Refusal, match=r"one-attacked\.png would be written over"):
        attack_pictures(files, Named(str(DIGITS)), out=tmp_path)
    assert files[1].read_bytes() == digits[1].read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_pictures_of_one_name_do_not_overwrite_each_other() -> None:
    files = [Path("a/cat.png"), Path("b/cat.jpg"), Path("dog.png"), Path("c/cat.webp")]
    assert distinct(files) == ["cat", "cat-2", "dog", "cat-3"]
    assert distinct([Path("cat.png"), Path("b/cat.png"), Path("cat-2.png")]) == ["cat", "cat-3", "cat-2"]


def test_classes_of_one_name_are_not_taken_for_each_other(
    digits: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digit that the model sees shares its name with the class before it."""
    seen = answer(DIGITS, file_pixels(digits[0], 1))
    names = ["crane" if place in (seen, (seen + 5) % 10) else str(place) for place in range(10)]
    found = room.under_attack
    monkeypatch.setattr(room, "under_attack", lambda *given: dataclasses.replace(found(*given), classes=names))
    (picture,) = attack_pictures(digits[:1], Named(str(DIGITS)), eps=0.5, out=tmp_path)["pictures"]
    assert (picture["label"], picture["verdict"]) == ("crane", "fooled")
    assert answer(DIGITS, file_pixels(picture["adversarial"], 1)) != seen
    with pytest.raises(Refusal, match="2 classes have that name"):
        attack_pictures(digits[:1], Named(str(DIGITS)), eps=0.5, out=tmp_path, label="crane")


WRONG = {
    "{tmp}/nowhere.png --run {run}": ("nowhere.png", "does not exist"),
    "{tmp}/text --run {run}": ("text", "PNG or JPEG"),
    "{picture}": ("--run",),
    "{picture} --run {tmp}/nowhere": ("nowhere", "does not exist"),
    "{picture} --run {tmp}": ("weights.safetensors",),
    "{picture} --run {run} --eps 0.001": ("0.001", "1/255"),
    "{picture} --run {run} --eps 0": ("--eps 0", "above 0"),
    "{picture} --run {run} --norm l2": ("--norm l2", "--eps"),
    "{picture} --run {run} --label cat": ("class 'cat'", "0, 1, 2"),
    "{picture} --run {run} --attack pgd21": ("pgd21", "did you mean pgd20"),
    "{picture} --run {run} --attack transfer": ("transfer", "pgd20"),
    "{picture} --run {run} --data digits": ("--data digits", "leave it out"),
    "{picture} --run {run} --normalize none": ("--normalize none", "leave it out"),
    "{picture} --run {run} --out {tmp}/text": ("text", "cannot write"),
    "--run {run}": ("IMAGE",),
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_cannot_be_done_is_said_in_one_line(
    typed: str, digits: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("no picture")
    words = typed.format(tmp=tmp_path, run=DIGITS, picture=digits[0]).split()
    assert main(["attack", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    for word in WRONG[typed]:
        assert word in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["text"], "something was left behind"
