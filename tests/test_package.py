"""What holds for the package as a whole: what it imports, and what it says about itself."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import anchor_robust

ROOT = Path(__file__).parents[1]


def in_fresh_python(program: str) -> str:
    """What `program` prints when it is all that a new interpreter runs."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_no_torch() -> None:
    assert in_fresh_python("import sys, anchor_robust; print('torch' in sys.modules)") == "False\n"


def test_importing_the_report_imports_no_torch() -> None:
    walk = """
import importlib, pkgutil, sys
import anchor_robust.report as report
for module in pkgutil.walk_packages(report.__path__, "anchor_robust.report."):
    importlib.import_module(module.name)
print("torch" in sys.modules)
"""
    assert in_fresh_python(walk) == "False\n"


def test_help_imports_no_torch() -> None:
    ask = """
import sys
from anchor_robust.cli import main
try:
    status = main(["--help"])
except SystemExit as leaving:
    status = leaving.code
print("status", status or 0, "torch" in sys.modules)
"""
    helped = in_fresh_python(ask)
    assert helped.endswith("status 0 False\n")
    assert "quickstart" in helped


def test_every_module_imports_without_torchvision() -> None:
    walk = """
import importlib, pkgutil, sys
sys.modules["torchvision"] = None  # an import of it now raises ImportError
import anchor_robust
for module in pkgutil.walk_packages(anchor_robust.__path__, "anchor_robust."):
    importlib.import_module(module.name)
    print(module.name)
"""
    imported = set(in_fresh_python(walk).split())
    written = {
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "src" / "anchor_robust").rglob("*.py")
    }
    assert imported == written - {"anchor_robust"}


def test_the_version_is_the_one_of_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert anchor_robust.__version__ == metadata.version("anchor-robust") == project["version"]


def test_the_citation_names_the_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {anchor_robust.__version__}\n" in citation
