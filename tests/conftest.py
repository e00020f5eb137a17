import os

# Two test processes share the cores: one thread each, also in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# The same examples each time in continuous integration, new ones on a developer's machine.
hypothesis.settings.register_profile(
    "anchor", deadline=None, max_examples=50, derandomize="CI" in os.environ, print_blob=True
)
hypothesis.settings.load_profile("anchor")


@pytest.fixture(scope="session")
def cifar_dir() -> Path:
    """The folder with the real CIFAR-10. A folder that was named but holds none is a failure, not a skip."""
    named = os.environ.get("ANCHOR_DATA")
    if not named:
        pytest.skip("ANCHOR_DATA names no folder with CIFAR-10")
    folder = Path(named).resolve()
    releases = ("cifar-10-batches-py", "cifar-10-batches-bin")
    if not any((folder / release).is_dir() for release in releases):
        pytest.fail(f"ANCHOR_DATA={named} holds none of {', '.join(releases)}")
    return folder
