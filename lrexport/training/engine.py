"""The device, processes and precision of training, on Lightning Fabric."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lrexport.data.images import Splits
from lrexport.errors import DeviceError, FailedElsewhere, InputError, LrexportError
from lrexport.tasks.scoring import measuring
from lrexport.tasks.task import Task
from lrexport.torch_tools.batch import InputsLike, call, signature_of
from lrexport.torch_tools.memory import hold_freed_memory
from lrexport.torch_tools.memory_layout import channels_last, fast_layout, takes_channels_last
from lrexport.torch_tools.modes import in_mode
from lrexport.torch_tools.tracing import example_input

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
LASTING = ("device", "accelerator", "precision")  # facts of :func:`ran_on` that a record keeps after the export
_PASSES = 4  # forward passes to detect unused parameters


def make_fabric(
    device: str = "auto", precision: str = "auto", devices: int = 1, nodes: int = 1, trains: bool = True
) -> Fabric:
    """A Fabric, not launched yet, with ``devices`` devices on each of ``nodes`` machines: auto, cpu, cuda or mps.

    Precision is auto, float32 or bfloat16. Under torchrun the number of processes is torchrun's. If it ``trains`` on the
    CPU, this process keeps freed memory from now on. Raises DeviceError if a device is missing.
    """
    Fabric = _fabric()
    accelerator = _available() if device == "auto" else device
    if accelerator == "cpu" and trains:
        hold_freed_memory()
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no CUDA device found", "Use --device cpu, or install a build of torch for this GPU.")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("no Apple GPU found", "Use --device cpu.")
    if precision == "auto":
        precision = "bfloat16" if _has_fast_bfloat16(accelerator) else "float32"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise DeviceError(f"found {torch.cuda.device_count()} GPUs; expected {devices}", "Give fewer --devices.")
    if accelerator == "mps" and devices * nodes > 1:
        raise DeviceError("cannot train on several Apple GPUs", "Use --device cpu, or a single device.")
    several = "ddp" if devices * nodes > 1 else "auto"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # without a message for every process
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Fabric's advice on unused hardware
        plugin: Any = PRECISIONS[precision]
        return Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=several, precision=plugin)


def _fabric() -> type[Fabric]:
    """Fabric's class, without torchmetrics and the scipy that it imports, two seconds: Fabric asks for the version only."""
    is_loaded = {"torchmetrics", "lightning_fabric"} & sys.modules.keys()
    if not is_loaded:
        sys.modules["torchmetrics"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        from lightning_fabric import Fabric
    finally:
        if not is_loaded:
            del sys.modules["torchmetrics"]
    return Fabric


def ran_on(fabric: Fabric) -> dict[str, str]:
    """Facts of training for a record's environment: device, the GPU's name, precision, and the number of processes."""
    facts = {"device": str(fabric.device)}
    if fabric.device.type == "cuda":
        facts["accelerator"] = torch.cuda.get_device_name(fabric.device)
    facts["precision"] = str(fabric.strategy.precision.precision)
    if fabric.world_size > 1:
        facts["processes"] = str(fabric.world_size)
    return facts


def is_first() -> bool:
    """Whether this process, the first or only one, writes files and messages."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


@contextmanager
def failing_together(fabric: Fabric, launching: bool = False) -> Iterator[None]:
    """An error of one process inside the block ends all processes at its end, so none waits for another that is gone.

    With ``launching`` the block ends with their launch. Raises this process's error, or FailedElsewhere.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if not _is_awaited(fabric, launching):
            raise
        failure = error
    try:
        if launching:
            fabric.launch()
            atexit.register(_leave_the_others)
        failures = _failures(failure, fabric)
    except Exception as error:  # the other processes have ended; this process's error says more
        raise failure or error from None
    if failure is not None:
        raise failure
    for process, other in enumerate(failures):
        if other is not None:
            raise FailedElsewhere(process, *other)


def check_same_images(fabric: Fabric, digest: str | None) -> None:
    """Raise InputError in all processes if the ``digest`` of one's training images differs from that of the first."""
    if fabric.world_size == 1:
        return
    digests: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(digests, digest)
    others = [str(process) for process, other in enumerate(digests) if other != digests[0]]
    if others:
        raise InputError(
            f"the training images of process {', '.join(others)} are not those of process 0",
            "All processes need the same files, or the same images from the callable of --data.",
        )


def _leave_the_others() -> None:
    """Close the connections to other processes, if any.

    Done at exit, because is_first is used until then, but before the interpreter is finalised: a thread of gloo that then
    frees a tensor would fail to get the interpreter's lock and abort the process.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _is_awaited(fabric: Fabric, launching: bool) -> bool:
    """Whether other processes exist, or will be started independently of this one."""
    strategy: Any = fabric.strategy
    if fabric.world_size == 1:
        return False
    return not launching or strategy.num_nodes > 1 or strategy.cluster_environment.creates_processes_externally


def _failures(failure: Exception | None, fabric: Fabric) -> list[tuple[int, str] | None]:
    """Exit code and message of the failure of each process, or None."""
    if fabric.world_size == 1:
        return [None]
    mine = None
    if isinstance(failure, LrexportError):
        mine = failure.exit_code, failure.message
    elif failure is not None:
        mine = DeviceError.exit_code, f"{type(failure).__name__}: {failure}"
    failures: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(failures, mine)
    return failures


def with_float64(device: torch.device) -> torch.device:
    """The device, or the CPU instead of an Apple GPU, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def to_fast_layout(network: nn.Module, inputs: InputsLike) -> nn.Module:
    """The network, with its 4-D weights in channels_last if it accepts its images in that layout.

    Steps of CIFAR ResNets on x86 CPUs are 1.2× faster, and tensor cores need this layout. Module.to would refuse networks
    with 5-D weights.
    """
    if takes_channels_last(network, example_input(network, signature_of(inputs, network))):
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data = channels_last(tensor.data)
    return network


def device_of(network: nn.Module) -> torch.device:
    """Where the weights are."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def freeze_unused(network: nn.Module, splits: Splits, task: Task) -> None:
    """Freeze parameters that the loss does not depend on, because several processes wait for the gradients of all others.

    A network may skip layers at random, so several passes are made, the same in all processes.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    used: set[nn.Parameter] = set()
    buffers = [buffer.clone() for buffer in network.buffers()]
    images, targets = next(iter(splits.train.batches(2, device_of(network))))  # a single image has no variance
    inputs = fast_layout(network, images)
    try:
        with torch.random.fork_rng(devices=()), in_mode(network, training=True):
            for seed in range(_PASSES):
                torch.manual_seed(seed)
                with measuring(task):
                    loss, _ = task.training_loss(partial(call, network), inputs.clone(), targets)
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                used |= {each for each, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    finally:
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)
    for parameter in parameters:
        parameter.requires_grad_(parameter in used)


def _available() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _has_fast_bfloat16(accelerator: str) -> bool:
    """Whether bfloat16 is faster than float32: on GPUs that support it. On a CPU with AVX-512 BF16, steps took 1.1 to 2.2
    times as long (benchmarks/results/cpu_precision.md).
    """
    return accelerator == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
