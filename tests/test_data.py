import hashlib
import http.server
import pickle
import shutil
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchor_robust.data import NAMES, ImageSet, check_pixels, cifar, hold_out, load
from anchor_robust.data.cifar import BINARY, PYTHON, Stamp, from_pickle
from anchor_robust.errors import Refusal


def image_set(labels: list[int], classes: int = 3, shape: tuple[int, ...] = (2, 4, 5)) -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (len(labels), *shape), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.tensor(labels), tuple(map(str, range(classes))), "toy", "train")


# --- ImageSet ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), "torch.float32"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2).long(), r"\[2, 4, 4\]"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3).long(), r"torch.int64 \[2\]"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2).int(), "torch.int32"),
        (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), torch.zeros(0).long(), "no images"),
        (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([1, 2, 9]), "label 2 at index 1.*0 to 1"),
        (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([1, 0, -1]), "label -1 at index 2"),
    ],
)
def test_an_image_set_refuses_what_it_cannot_hold(images, labels, message):
    with pytest.raises(Refusal, match=message) as refused:
        ImageSet(images, labels, ("a", "b"), "toy", "train")
    assert "\n" not in str(refused.value)


def test_subset_and_first_pick_images_with_their_labels():
    whole = image_set([0, 1, 2, 1])
    picked = whole.subset(torch.tensor([3, 0]), "validation")
    assert picked.labels.tolist() == [1, 0]
    assert torch.equal(picked.images, whole.images[[3, 0]])
    assert (picked.split, whole.subset(torch.tensor([1])).split) == ("validation", "train")
    assert len(whole.first(3)) == 3
    assert whole.first(3).sha256 == whole.subset(torch.arange(3)).sha256
    assert whole.first(9).sha256 == whole.sha256
    with pytest.raises(Refusal, match="first 0 images"):
        whole.first(0)


def test_pixels_are_float32_fractions_of_255():
    one = ImageSet(
        torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1), torch.zeros(3).long(), ("a",), "t", "test"
    )
    assert one.pixels(slice(1, 3)).flatten().tolist() == [pytest.approx(0.2), 1.0]
    assert one.pixels(torch.tensor([2, 0])).flatten().tolist() == [1.0, 0.0]
    assert one.pixels(slice(None)).dtype == torch.float32
    assert one.images.flatten().tolist() == [0, 51, 255]


def test_the_hash_sees_pixels_labels_and_shape_but_not_layout():
    whole = image_set([0, 1, 2])
    images = whole.images.clone()
    assert (
        ImageSet(images.to(memory_format=torch.channels_last), whole.labels, whole.classes, "x", "test").sha256
        == whole.sha256
    )
    other_labels = ImageSet(images, torch.tensor([0, 1, 1]), whole.classes, "toy", "train")
    other_shape = ImageSet(images.view(3, 2, 5, 4), whole.labels, whole.classes, "toy", "train")
    images[2, 1, 3, 4] ^= 1
    other_pixel = ImageSet(images, whole.labels, whole.classes, "toy", "train")
    assert len({one.sha256 for one in (whole, other_labels, other_shape, other_pixel)}) == 4


def test_the_hash_is_the_same_on_every_machine():
    counting = ImageSet(
        torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2), torch.tensor([1, 0]), ("a", "b"), "t", "test"
    )
    by_hand = b"[2, 1, 2, 2]\n" + bytes(range(8)) + bytes([1] + 15 * [0])
    assert counting.sha256 == hashlib.sha256(by_hand).hexdigest()


@given(st.integers(1, 9), st.integers(1, 3), st.integers(0, 255))
def test_channel_statistics_are_those_of_the_float_images(n, c, top):
    images = torch.randint(top + 1, (n, c, 3, 3), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    mean, deviation = ImageSet(images, torch.zeros(n).long(), ("a",), "t", "train").channel_statistics()
    channels = images.double().div(255).transpose(0, 1).flatten(1)
    assert mean == pytest.approx(channels.mean(1).tolist(), abs=1e-12)
    assert deviation == pytest.approx(channels.std(1, correction=0).tolist(), abs=1e-12)


# --- hold_out ---------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=2, max_size=80), st.data())
def test_hold_out_is_disjoint_complete_and_stratified(labels, data):
    count = data.draw(st.integers(1, len(labels) - 1))
    marks = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    whole = ImageSet(marks, torch.tensor(labels), tuple("abcde"), "toy", "train")
    rest, held = hold_out(whole, count, seed=data.draw(st.integers(0, 9)))
    assert (len(held), held.split, rest.split) == (count, "validation", "train")
    parts = [part.images.flatten().tolist() for part in (rest, held)]
    assert sorted(parts[0] + parts[1]) == list(range(len(labels)))
    for part in (rest, held):
        assert part.labels.tolist() == [labels[i] for i in part.images.flatten()]
    for label in set(labels):
        share = labels.count(label) * count / len(labels)
        assert abs((held.labels == label).sum().item() - share) <= 1


def test_hold_out_is_a_fixed_function_of_set_count_and_seed():
    whole = image_set([0, 1, 2, 1] * 10)
    assert hold_out(whole, 8)[1].sha256 == hold_out(whole, 8)[1].sha256
    assert hold_out(whole, 8)[1].sha256 != hold_out(whole, 8, seed=1)[1].sha256
    # Runs are compared over months: the split must not change under them.
    assert hold_out(whole, 8)[1].sha256.startswith("dfe4aeee7c2a14f7")


@pytest.mark.parametrize("count", [0, -1, 4, 5])
def test_hold_out_leaves_something_on_both_sides(count):
    with pytest.raises(Refusal, match="allowed: 1 to 3"):
        hold_out(image_set([0, 1, 2, 1]), count)


# --- check_pixels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [torch.zeros(1, 1, 2, 2), torch.ones(1, 3, 2, 2).double(), torch.rand(2, 3, 4, 4).half()])
def test_pixels_inside_the_unit_interval_pass(x):
    check_pixels(x)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.full((1, 1, 2, 2), 1.5), "from 1.5 to 1.5.*normalisation belongs in the model"),
        (torch.tensor([0.0, -0.25]).view(1, 1, 1, 2), "from -0.25 to 0"),
        (torch.tensor([0.5, torch.nan]).view(1, 1, 1, 2), "nan"),
        (torch.tensor([0.5, torch.inf]).view(1, 1, 1, 2), "inf"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "torch.uint8.*divide bytes by 255"),
        (torch.zeros(1, 2, 2), r"\[1, 2, 2\]"),
        (torch.zeros(0, 1, 2, 2), r"\[0, 1, 2, 2\]"),
    ],
)
def test_pixels_outside_the_unit_interval_are_refused(x, message):
    with pytest.raises(Refusal, match=message):
        check_pixels(x)


# --- load -------------------------------------------------------------------------------------------------------


def test_load_names_the_nearest():
    assert NAMES == ("cifar10", "digits")
    with pytest.raises(Refusal, match=r"data set .*'digit' is unknown.*did you mean digits\?.*cifar10, digits"):
        load("digit", "train")
    with pytest.raises(Refusal, match=r"split 'tets' is unknown.*did you mean test\?.*train, test"):
        load("digits", "tets")
    with pytest.raises(Refusal, match=r"split 'validation' is unknown.*allowed: train, test"):
        load("digits", "validation")


# --- digits -----------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_scans_split_once_and_for_all():
    from sklearn.datasets import load_digits

    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test), train.classes[7]) == (1437, 360, "7")
    assert (train.name, train.split, test.split) == ("digits", "train", "test")
    assert test.images.shape[1:] == (1, 8, 8)
    assert set(test.labels.bincount().tolist()) <= {35, 36, 37}
    scans = load_digits()
    expected = sorted(
        (label, bytes(round(v * 255 / 16) for v in scan)) for scan, label in zip(scans.data, scans.target, strict=True)
    )
    found = [
        (label, bytes(image.flatten().tolist()))
        for part in (train, test)
        for image, label in zip(part.images, part.labels.tolist(), strict=True)
    ]
    assert sorted(found) == expected
    assert test.sha256.startswith("734de23c504b9e31")


# --- CIFAR-10, synthetic ----------------------------------------------------------------------------------------


@pytest.fixture
def releases(tmp_path, monkeypatch) -> Path:
    """A folder with both releases, four images a file, stamped as genuine."""
    rng = np.random.default_rng(0)
    stamps = {release: {split: {} for split in ("train", "test")} for release in (PYTHON, BINARY)}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        data = rng.integers(256, size=(4, 3072), dtype=np.uint8)
        labels = rng.integers(10, size=4).tolist()
        records = np.concatenate([np.array(labels, np.uint8)[:, None], data], axis=1).tobytes()
        batch = pickle.dumps({b"data": data, b"labels": labels}, protocol=3)
        for release, file, content in ((PYTHON, name, batch), (BINARY, f"{name}.bin", records)):
            (tmp_path / release).mkdir(exist_ok=True)
            (tmp_path / release / file).write_bytes(content)
            split = "test" if name == "test_batch" else "train"
            stamps[release][split][file] = Stamp(len(content), hashlib.md5(content).hexdigest())
    monkeypatch.setattr(cifar, "STAMPS", stamps)
    monkeypatch.delenv("ANCHOR_DATA", raising=False)
    return tmp_path


@pytest.mark.parametrize("split, count", [("train", 20), ("test", 4)])
def test_both_releases_hold_the_same_images(releases, split, count):
    python, binary = (load("cifar10", split, releases / release) for release in (PYTHON, BINARY))
    assert python.sha256 == binary.sha256
    assert python.images.shape == (count, 3, 32, 32)
    assert (python.name, python.split, python.classes[9]) == ("cifar10", split, "truck")


def test_the_binary_release_is_a_label_then_red_green_and_blue_rows(releases):
    last = (releases / BINARY / "data_batch_2.bin").read_bytes()[-3073:]
    train = load("cifar10", "train", releases / BINARY)
    assert train.labels[7] == last[0]
    assert bytes(train.images[7, 2, 31].tolist()) == last[-32:]
    assert bytes(train.images[7, 0, 0].tolist()) == last[1:33]


def test_the_folder_is_found_by_argument_then_environment(releases, monkeypatch):
    assert cifar.locate(releases) == releases / PYTHON
    assert cifar.locate(str(releases / BINARY)) == releases / BINARY
    shutil.rmtree(releases / PYTHON)
    monkeypatch.setenv("ANCHOR_DATA", str(releases))
    assert cifar.locate() == releases / BINARY
    with pytest.raises(Refusal, match=f"elsewhere holds no CIFAR-10.*{PYTHON}.*ANCHOR_DATA"):
        cifar.locate(releases / "elsewhere")


@pytest.mark.parametrize("release, file", [(PYTHON, "test_batch"), (BINARY, "test_batch.bin")])
@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.unlink(), "cannot be read .No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"has \d+ bytes, expected \d+: truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), r"has MD5 \w{32}, expected \w{32}: corrupt"),
    ],
)
def test_a_damaged_file_is_named_with_what_was_found(releases, release, file, damage, message):
    damage(releases / release / file)
    for ask in (
        lambda: load("cifar10", "test", releases / release),
        lambda: cifar.verify(releases / release),
    ):
        with pytest.raises(Refusal, match=f"{file} {message}.*; delete it and unpack") as refused:
            ask()
        assert "\n" not in str(refused.value)


def test_only_the_files_of_the_split_are_read(releases):
    cifar.verify(releases / PYTHON)
    (releases / PYTHON / "test_batch").unlink()
    assert len(load("cifar10", "train", releases)) == 20


class Malice:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_malicious_pickle_is_refused_by_its_checksum_before_it_is_read(releases, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "ArraysOnly", lambda *_, **__: pytest.fail("the pickle was opened"))
    genuine = releases / PYTHON / "test_batch"
    evil = pickle.dumps(Malice(tmp_path / "owned")).ljust(genuine.stat().st_size, b".")
    genuine.write_bytes(evil)
    with pytest.raises(Refusal, match="MD5"):
        load("cifar10", "test", releases)


def test_a_malicious_pickle_is_refused_by_the_unpickler_too(tmp_path):
    with pytest.raises(Refusal, match=r"asks for \S+; allowed: NumPy arrays"):
        from_pickle(pickle.dumps({b"data": Malice(tmp_path / "owned"), b"labels": []}, protocol=3))
    assert not (tmp_path / "owned").exists()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None: ...


@pytest.fixture
def archive_server(releases, monkeypatch):
    """The python release behind a local address instead of the official one; the cache is empty."""
    site = releases / "site"
    site.mkdir()
    with tarfile.open(site / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(releases / PYTHON, PYTHON)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("XDG_CACHE_HOME", str(releases / "cache"))
        monkeypatch.setattr(cifar, "ARCHIVE", f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz")
        monkeypatch.setattr(
            cifar, "ARCHIVE_MD5", hashlib.md5((site / "cifar-10-python.tar.gz").read_bytes()).hexdigest()
        )
        yield site
        server.shutdown()


def test_without_a_folder_the_archive_is_fetched_once(releases, archive_server):
    expected = load("cifar10", "test", releases).sha256
    assert load("cifar10", "test").sha256 == expected
    (archive_server / "cifar-10-python.tar.gz").unlink()
    assert load("cifar10", "test").sha256 == expected
    assert (releases / "cache") in cifar.locate().parents


def test_who_comes_second_waits_for_the_archive(releases, archive_server, monkeypatch):
    import pooch

    retrieve, at_it, together = pooch.retrieve, [], []

    def slowly(*given, **how):
        at_it.append(1)
        together.append(len(at_it))
        time.sleep(0.05)
        found = retrieve(*given, **how)
        at_it.pop()
        return found

    monkeypatch.setattr(pooch, "retrieve", slowly)
    with ThreadPoolExecutor(3) as pool:
        folders = {each.result() for each in [pool.submit(cifar.fetch) for _ in range(3)]}
    assert len(folders) == 1
    assert together == [1, 1, 1]


def test_an_archive_with_another_checksum_is_refused(archive_server):
    (archive_server / "cifar-10-python.tar.gz").write_bytes(b"another archive")
    with pytest.raises(Refusal, match=r"could not be fetched.*hash.*--data-dir"):
        load("cifar10", "test")


def test_without_a_network_it_says_how_to_do_without(archive_server, monkeypatch):
    monkeypatch.setattr(cifar, "ARCHIVE", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # nobody listens there
    with pytest.raises(Refusal, match=r"could not be fetched.*no connection.*--data-dir or ANCHOR_DATA"):
        load("cifar10", "test")


def test_arrays_for_tests_are_none_to_train_on():
    with pytest.raises(Refusal, match=r"serves for tests alone; to train, give a FOLDER"):
        load("mine.npz", "train")


def test_a_long_error_of_the_download_is_told_in_one_line(releases, monkeypatch):
    def full(*_, **__):
        raise OSError("no space\n  left")

    monkeypatch.setattr("pooch.retrieve", full)
    with pytest.raises(Refusal, match="no space left; unpack it yourself"):
        load("cifar10", "test")


# --- CIFAR-10, real ---------------------------------------------------------------------------------------------


def test_real_cifar10(cifar_dir):
    train, test = load("cifar10", "train", cifar_dir), load("cifar10", "test", cifar_dir)
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert test.classes[test.labels[0]] == "cat"
    mean, deviation = train.channel_statistics()
    assert mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-4)  # as published everywhere
    assert deviation == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-4)
    rest, held = hold_out(train, 1000)
    assert held.labels.bincount().tolist() == [100] * 10
    assert len(rest) == 49000
    assert train.sha256.startswith("18055ccec5b3fdbd")
    assert test.sha256.startswith("6dbd7ee4d9290dad")


def test_the_global_generators_are_left_alone():
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    hold_out(load("digits", "train"), 100)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
