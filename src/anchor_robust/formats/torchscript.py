"""TorchScript: programs of torch.jit.script and torch.jit.trace."""

import re
import warnings
from pathlib import Path

import torch
from torch import nn

from ..errors import Refusal, one_line

# TorchScript is a language of its own, in which no Python can be called. What it can do beside arithmetic is to write
# and read files, to call other machines, and to use what C++ extensions add: by these names, and already while it is
# loaded, as __setstate__ runs then.
BEYOND_ARITHMETIC = re.compile(
    rb"\b(?:save\b|from_file\b|rpc_\w+"
    rb"|ops[\s\\]*\.[\s\\]*(?!aten\b|prims?\b|quantized\b)\w+"
    rb"|classes[\s\\]*\.[\s\\]*(?!quantized\b)\w+)"
)


def load(path: Path, device: torch.device) -> nn.Module:
    """The program in `path`, in evaluation mode.

    Its source is read before it is loaded. Raises Refusal when the file is broken, or calls anything but arithmetic.
    """
    try:
        reader = torch._C.PyTorchFileReader(str(path))  # what torch.jit.load reads with: it sees the same entries
        for name in reader.get_all_records():
            if name.lower().endswith((".py", ".pkl")) and (call := BEYOND_ARITHMETIC.search(reader.get_record(name))):
                raise Refusal(
                    f"{path} calls {call[0].decode()}, which is no arithmetic and could touch your files; "
                    "save the model without it"
                )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the format, which its users know
            return torch.jit.load(path, map_location=device).eval()
    except Refusal:
        raise
    except Exception as error:  # a broken file can fail anywhere in the reader
        raise Refusal(f"TorchScript file {path} cannot be read ({one_line(error)}); is it complete?") from error
