"""Whole models in other people's formats, a reader per file, and the trial that they have to pass."""

import zipfile
from pathlib import Path
from typing import Literal

Format = Literal["Hugging Face", "TorchScript", "torch.export", "state dict"]
PROGRAMS = ("TorchScript", "torch.export")  # whose mode may be fixed in them


def recognise(path: Path) -> Format:
    """The format of a file or folder by what lies in it, whatever its name ends in."""
    if path.is_dir():
        return "Hugging Face"
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return "state dict"  # in the older, unzipped form, or broken, which its reader will say
    if "constants.pkl" in names:
        return "TorchScript"
    if names & {"archive_format", "serialized_exported_program.json"}:
        return "torch.export"
    return "state dict"
