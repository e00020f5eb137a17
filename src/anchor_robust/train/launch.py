"""Where processes come from: `--devices` and `--nodes`, torchrun, SLURM."""

import inspect
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from .. import processes
from ..errors import Refusal, one_line

# What Fabric announces at the start (the precision) stands in environment.json.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

# Buffers need no copying: BatchNorm takes its statistics over all processes. Newer torch has another name for that.
NAMES = ("forward_sync_buffers", "broadcast_buffers")
KNOWN = inspect.signature(DistributedDataParallel).parameters
OWN_BUFFERS: dict[str, Any] = {next(name for name in NAMES if name in KNOWN): False}
Precision = Literal["bf16-mixed", "32-true"]
# A process waits for the others while one of them ends a unit of an evaluation, which may take hours. That one has died
# is seen by who watches them, not by a clock.
TIMEOUT = timedelta(days=7)
LOST = ("gloo", "NCCL", "TCPStore", "Broken pipe")  # in what a collective raises when another process is gone


def fabric(precision: Precision = "32-true", devices: int = 1, nodes: int = 1) -> Fabric:
    """Fabric on the accelerator, or on processors where there is none; several of them average their gradients."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    strategy = DDPStrategy(timeout=TIMEOUT, **OWN_BUFFERS) if devices * nodes > 1 else "auto"
    try:
        return Fabric(accelerator=kind, strategy=strategy, devices=devices, num_nodes=nodes, precision=precision)
    except Exception as error:
        raise Refusal(f"--devices {devices} --nodes {nodes} given; {one_line(error)}") from error


@contextmanager
def launched(
    devices: int | None = None, nodes: int | None = None, precision: Precision = "32-true"
) -> Iterator[Fabric]:
    """As many processes as are asked for, each of which runs the body; without a wish those that torchrun or srun made.

    The command that is running is started once more for each further device. An error in one process ends them all, and
    the first one tells it; the others end in silence.
    """
    given = made_by_others()
    asked = (given[0] if devices is None else devices, given[1] if nodes is None else nodes)
    if min(asked) < 1:
        raise Refusal(f"--devices {asked[0]} --nodes {asked[1]} given; allowed: 1 or more of each")
    if asked[1] > 1 and given == (1, 1) and "NODE_RANK" not in os.environ:
        raise Refusal(
            f"--nodes {nodes} given; start the command with torchrun or srun, "
            "or on every node with MASTER_ADDR, MASTER_PORT and NODE_RANK set"
        )
    made = fabric(precision, *asked)
    if asked == (1, 1):
        yield made
        return
    try:
        made.launch()
    except Exception as error:
        raise Refusal(f"--devices {asked[0]} --nodes {asked[1]}: no processes ({one_line(error)})") from error
    watched = getattr(made.strategy.launcher, "procs", [])
    children = list(watched)
    try:
        yield made
        made.barrier()
    except BaseException as error:
        # Fabric watches them and kills this process, too, when one dies: it is to watch none, as this one has to speak.
        watched.clear()
        for child in children:
            child.kill()
        ending = told(error)
        if ending is error:
            raise
        raise ending from error
    finally:
        for child in children:
            child.wait()


def told(error: BaseException) -> BaseException:
    """What this process says of an error that ends all of them."""
    if isinstance(error, Refusal | KeyboardInterrupt):
        # Of any other status than 0 Fabric would kill the first process, which still has to speak.
        return error if processes.first() else SystemExit()
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST):
        lost = f"process {processes.index()} has lost the others"
        return Refusal(f"{lost} (--debug shows why); what was saved stays, go on from it")
    return error


def made_by_others() -> tuple[int, int]:
    """Processes on each node, and nodes, as torchrun or srun have started this one; 1 and 1 without them."""
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        return devices, int(os.environ["WORLD_SIZE"]) // devices
    if SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        # srun --ntasks alone does not say how many they are on each node.
        each = os.environ.get("SLURM_NTASKS_PER_NODE") or int(os.environ.get("SLURM_NTASKS", nodes)) // nodes
        return int(each), nodes
    return 1, 1
