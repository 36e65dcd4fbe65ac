"""What the tests of bad input share: the tiny network's source, files as they are on disk, limits on time and memory."""

from __future__ import annotations

import importlib
import resource
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

TINY = """
    import torch
    from torch import nn

    def make():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
        )

    make.input_shape = (3, 8, 8)
"""

# Data of a user's own: what --data users:NAME takes, and all the ways it can be wrong.
DATA = """
    import torch
    from lrexport.data.images import ArraySet, ImageData

    def images(count, classes, shape=(3, 8, 8), shift=0):
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
        return [(image, index % classes + shift) for index, image in enumerate(pixels)]

    def fitting():
        return images(40, 10), images(20, 10)

    def grey():
        return images(40, 10, (1, 8, 8)), images(20, 10, (1, 8, 8))

    def large():
        return images(40, 10, (3, 16, 16)), images(20, 10, (3, 16, 16))

    def seven():
        return images(42, 7), images(21, 7)

    def more_classes_in_test():
        return images(40, 10), images(24, 12)

    def negative():
        return images(40, 11, shift=-1), images(22, 11, shift=-1)

    def whole_numbers():
        return [(image.long(), label) for image, label in images(40, 10)], images(20, 10)

    def with_nan():
        made = [(image.float(), label) for image, label in images(40, 10)]
        made[1][0][0, 0, 0] = float("nan")
        return made, made[2:]

    def two_types():
        made = images(40, 10)
        return [(made[0][0].float(), 0), *made[1:]], made

    def channels_last():
        return images(40, 10, (8, 8, 3)), images(20, 10, (8, 8, 3))

    def objects():
        return [image.numpy().astype(object) for image, _ in images(40, 10)]

    def some_labels():
        return [images(1, 1)[0], images(1, 1)[0][0]], images(20, 10)

    def number():
        return 5

    def single():
        return [image for image, _ in images(1, 1)], [image for image, _ in images(1, 1)]

    class Collated(list):
        collate_fn = staticmethod(lambda items: 1 / 0)

    class Stacked(list):
        collate_fn = staticmethod(lambda items: torch.stack([image[:, :4] for image, _ in items]))

    def uncollated():
        return Collated(images(40, 10)), Collated(images(20, 10))

    def miscollated():
        return Stacked(images(40, 10)), Stacked(images(20, 10))

    def empty():
        return [], []

    def one():
        return images(40, 10)[0]

    def whole(shape, labels=range(10), classes=10):
        labels = torch.tensor(list(labels)).repeat(4)
        pixels = torch.zeros(len(labels), *shape, dtype=torch.uint8)
        part = ArraySet(pixels, labels, (0.5,) * shape[0], (0.5,) * shape[0])
        return ImageData("mine", [str(i) for i in range(classes)], part, part)

    def whole_grey():
        return whole((1, 8, 8))

    def whole_large():
        return whole((3, 12, 8))

    def whole_strays():
        return whole((3, 8, 8), range(12))

    def whole_negative():
        return whole((3, 8, 8), range(-1, 9))

    def raising():
        raise OSError("the disk with the images is not mounted")

    class Broken(list):
        def __getitem__(self, index):
            raise KeyError("no such image")

    def broken():
        return Broken(images(40, 10)), images(20, 10)

    def endless():
        pair = images(1, 1)[0]
        return iter(lambda: pair, None), images(20, 10)

    def breaking_off():
        def stream():
            yield from images(2, 2)
            raise OSError("the camera is gone")
        return stream(), images(20, 10)

    def half_labelled():
        return [image for image, _ in images(40, 10)], images(20, 10)

    def unlabelled():
        return [image for image, _ in images(40, 10)]
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def write_module(name: str, source: str) -> None:
    """A module in the current folder, importable at once."""
    Path(f"{name}.py").write_text(textwrap.dedent(source))
    importlib.invalidate_caches()


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, hidden ones too, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def frugally(megabytes: int = 200, seconds: float = 20) -> Iterator[None]:
    """Fail where the block raises the process's peak memory by more than ``megabytes``, or takes long."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    yield
    risen = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert risen < megabytes * 1024, f"peak memory rose by {risen / 1024:.0f} MiB"
    assert time.perf_counter() - began < seconds


def nothing_made(folder: str = "out") -> bool:
    """Whether a command that was refused left no file in its output, not even a hidden one."""
    return not Path(folder).exists() or not listing(Path(folder))


def processes_with(word: str) -> list[int]:
    """Processes of this machine that have ``word`` in their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may end at any moment
            if word.encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found
