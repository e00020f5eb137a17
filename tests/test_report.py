"""Tables and tests on results."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from anchor_robust.report.paired import mcnemar
from anchor_robust.report.table import conventions

ROOT = Path(__file__).parents[1]


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    expected = binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 5) == 2 / 32
    assert mcnemar(3, 3) == 1
    assert mcnemar(0, 0) == 1


def test_conventions_leave_nothing_out() -> None:
    pgd = {"norm": "linf", "eps": 0.031, "steps": 20, "step_size": 0.003, "restarts": 2, "start": "uniform"}
    told = conventions({**pgd, "loss": "ce", "dtype": "float32"})
    assert told == "linf eps 0.031, 20 x 0.003, uniform start, 2 restarts, ce, float32"
    clean = dict.fromkeys(pgd) | {"loss": None, "dtype": "float32"}
    assert conventions(clean) == "float32"


def test_documents_say_what_the_result_files_say() -> None:
    command = [sys.executable, "results/table.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
