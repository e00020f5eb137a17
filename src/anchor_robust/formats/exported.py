"""Programs of torch.export."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from ..errors import Refusal, one_line

TRUSTED = "torch.export"


class Exported(nn.Module):
    """An exported program for any number of images, also when it was exported for exactly `batch` of them."""

    def __init__(self, program: nn.Module, batch: int | None) -> None:
        super().__init__()
        self.program, self.batch = program, batch

    def forward(self, x: Tensor) -> Tensor:
        if self.batch is None:
            return self.program(x)
        answers = []
        for part in x.split(self.batch):
            padding = part[-1:].expand(self.batch - len(part), *part.shape[1:])
            answers.append(self.program(torch.cat([part, padding]))[: len(part)])
        return torch.cat(answers)

    def train(self, mode: bool = True) -> "Exported":
        # The mode is part of an exported graph, which refuses to be asked for another: only the flags are set.
        for module in self.modules():
            module.training = mode
        return self


def load(path: Path, device: torch.device, trusted: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """The program in `path`, and what is to be said of it.

    `torch.export.load` unpickles, and evaluates expressions that the file holds: it is called only for a user who has
    named it as `trusted`. Raises Refusal without that, and for a file that is broken or of another version.
    """
    if trusted != TRUSTED:
        raise Refusal(
            f"{path} is a torch.export program, and loading one can run code of its author's; "
            f"if you trust it, say so with --model {TRUSTED}, else ask for its state dict"
        )
    try:
        with path.open("rb") as file:
            exported = torch.export.load(file)
        exported = move_to_device_pass(exported, device)
        batch = static_batch(exported)
        return Exported(exported.module(), batch), {} if batch is None else {"exported_batch": batch}
    except Exception as error:  # a broken file can fail anywhere in the reader
        raise Refusal(
            f"torch.export program {path} cannot be read by torch {torch.__version__} ({one_line(error)}); "
            "is it complete, and of this version?"
        ) from error


def static_batch(exported: torch.export.ExportedProgram) -> int | None:
    """How many images the program takes, if it takes only that many; torch.export fixes this unless told otherwise."""
    inputs = exported.graph_signature.user_inputs
    sizes = [node.meta["val"].shape[0] for node in exported.graph.nodes if node.name in inputs]
    return sizes[0] if sizes and isinstance(sizes[0], int) else None
