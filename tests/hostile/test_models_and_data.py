"""An invalid MODEL, and data that does not fit it: docs/faults.md, Networks and layers, Data and images."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lrexport.runs.record import load_record
from tests.hostile.support import DATA, TINY, Command, nothing_made, write_module

USERS = """
    import dataclasses

    import torch
    from torch import nn

    number = 42
    network = nn.Linear(4, 2)

    def raising():
        raise RuntimeError("the flux capacitor is missing")

    def exiting():
        raise SystemExit(0)

    def returning():
        return "a network"

    def shapeless():
        return nn.Linear(4, 2)

    def wrong_shape():
        return nn.Sequential(nn.Flatten(), nn.Linear(5, 2))

    def plain():
        return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 4))

    def scripted():
        return torch.jit.script(plain())

    def partly_scripted():
        return nn.Sequential(nn.Conv2d(3, 3, 1), torch.jit.script(plain()))

    def without_values():
        with torch.device("meta"):
            return plain()

    class Lazy(nn.Module):
        def __init__(self, spare=False):
            super().__init__()
            self.first, self.second, self.head = nn.LazyConv2d(16, 3), nn.LazyConv2d(16, 3), nn.LazyLinear(10)
            self.spare = nn.LazyLinear(3) if spare else None

        def forward(self, x):
            return self.head(self.second(self.first(x).relu()).mean((2, 3)))

    def lazy():
        return Lazy()

    def lazy_and_unused():
        return Lazy(True)

    def lazy_for_sequences():
        return nn.Sequential(nn.LazyConv1d(4, 3))

    @dataclasses.dataclass
    class Output:
        logits: torch.Tensor

    class Wrapping(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.made, self.wrap = plain(), wrap

        def forward(self, x):
            return self.wrap(self.made(x))

    def a_number():
        return Wrapping(lambda x: 3.0)

    def nothing():
        return Wrapping(lambda x: None)

    functions = [raising, exiting, returning, wrong_shape, scripted, partly_scripted]
    functions += [without_values, lazy, lazy_and_unused, lazy_for_sequences, a_number, nothing]
    for function in functions:
        function.input_shape = (3, 8, 8)

    def one_number(): ...
    one_number.input_shape = 8

    def no_numbers(): ...
    no_numbers.input_shape = ()

    def text(): ...
    text.input_shape = ("3", "wide", "high")
"""

MODELS = {
    "no such name": ("resnet21", "unknown MODEL 'resnet21'", "Did you mean resnet"),
    "a name of torchvision's": (
        "resnet18",
        "unknown MODEL 'resnet18'",
        "Did you mean torchvision:resnet18 or ",
    ),
    "a file": ("users.py:shapeless", "MODEL 'users.py:shapeless' names a file", "Write users:shapeless.\n"),
    "a file in this folder": ("./users.py:shapeless", "names a file", "Write users:shapeless.\n"),
    "a file elsewhere": ("nets/users.py:make", "names a file", "Write users:make and start in nets.\n"),
    "a file alone": ("users.py", "MODEL 'users.py' names a file", "Write users:CALLABLE.\n"),
    "a network itself": ("users:network", "is a network; expected a callable that returns one", "a function"),
    "no such module": (
        "nowhere:make",
        "MODEL 'nowhere:make': no module named 'nowhere'",
        "in the current folder, or installed",
    ),
    "no such submodule": ("users.nets:make", "no module named 'users.nets'", "or installed"),
    "a path that is none": ("users:", "invalid MODEL 'users:': expected package.module:callable", ""),
    "a module that raises": ("exploding:make", "importing it raised ZeroDivisionError: division by zero", ""),
    "a module with bad syntax": ("misspelt:make", "importing it raised SyntaxError: ", "misspelt.py, line 2"),
    "a module that needs another": (
        "needing:make",
        "importing it raised ModuleNotFoundError: No module named 'absent_thing'",
        "",
    ),
    "a module that exits": ("leaving:make", "importing it raised SystemExit: 0", ""),
    "no such attribute": ("users:rasing", "users has no 'rasing'", "Close: raising"),
    "no callable": ("users:number", "MODEL 'users:number' is of type int; expected a callable", ""),
    "a callable that raises": (
        "users:raising",
        "MODEL 'users:raising' raised RuntimeError: the flux capacitor is missing",
        "",
    ),
    "a callable that exits": ("users:exiting", "MODEL 'users:exiting' raised SystemExit: 0", ""),
    "a callable that does not know an option": ("tiny:make?depth=3", "MODEL 'tiny:make' raised TypeError", "'depth'"),
    "something else than a network": (
        "users:returning",
        "MODEL 'users:returning' returned str",
        "expected a torch.nn.Module",
    ),
    "TorchScript": (
        "users:scripted",
        "MODEL 'users:scripted' returned a network that is TorchScript (Sequential), whose layers cannot be changed",
        "Return the network without torch.jit",
    ),
    "TorchScript inside": ("users:partly_scripted", "returned a network: '1' is TorchScript", ""),
    "a network without values": (
        "users:without_values",
        "returned a network without values: '0.weight' is on the meta device",
        "Build it on the CPU",
    ),
    "no input shape": ("users:shapeless", "unknown input shape of MODEL 'users:shapeless'", "Give --input-shape"),
    "an input shape of one number": (
        "users:one_number",
        "invalid input_shape 8 of MODEL 'users:one_number'",
        "expected numbers, for example",
    ),
    "an input shape of no numbers": (
        "users:no_numbers",
        "invalid input_shape () of MODEL 'users:no_numbers'",
        "expected numbers",
    ),
    "an input shape of words": (
        "users:text",
        "invalid input_shape ('3', 'wide', 'high') of MODEL 'users:text'",
        "expected numbers",
    ),
}


@pytest.mark.parametrize("what", MODELS)
def test_a_model_that_cannot_be_had_is_told_apart_from_the_others(compress: Command, what: str) -> None:
    write_module("users", USERS)
    write_module("exploding", "1 / 0\n")
    write_module("misspelt", "import torch\ndef make(:\n")
    write_module("needing", "import absent_thing\n")
    write_module("leaving", "import sys\nsys.exit(0)\n")
    model, message, detail = MODELS[what]
    done = compress(model=model)
    assert done.code == 2
    assert message in done.err
    assert detail in done.err
    assert nothing_made()


def test_a_network_that_refuses_its_input_shape_is_told_with_the_shape(compress: Command) -> None:
    write_module("users", USERS)
    done = compress(model="users:wrong_shape")
    assert done.code == 3
    assert "the network does not accept an input of shape (3, 8, 8)" in done.err
    assert "--input-shape C,H,W" in done.err
    assert nothing_made()


@pytest.mark.slow
def test_a_folder_here_is_no_library_that_others_look_for(here: Path) -> None:
    """As a run's folder of that name was one for torch, which takes z3 where it is there."""
    Path("nets").mkdir()  # without __init__.py
    Path("nets/blocks.py").write_text(textwrap.dedent(TINY))
    write_module("users", "import nets.blocks\nfrom tiny import make\nimport absent_thing\n")
    Path("absent_thing").mkdir()
    Path("absent_thing/run.json").write_text("{}")
    code = (
        "import sys; sys.path = [place for place in sys.path if place]\n"  # as the command lrexport has it, not python -m
        "from lrexport.networks.building import import_callable\n"
        "import_callable('nets.blocks:make', 'MODEL')\n"
        "import tiny\n"
        "import_callable('users:make', 'MODEL')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "importing it raised ModuleNotFoundError: No module named 'absent_thing'" in done.stderr


def test_a_plain_folder_here_is_no_library_that_is_installed(compress: Command) -> None:
    Path("wave/files").mkdir(parents=True)  # of the standard library
    Path("wave/files/code.py").write_text("")
    write_module("users", f"import wave\nwave.open\n{textwrap.dedent(TINY)}")
    assert compress(model="users:make").code == 0


def test_a_module_here_is_taken_before_a_library_of_its_name(compress: Command) -> None:
    write_module("this", TINY)  # the standard library has one, too
    assert "wave has no 'make'" in compress(model="wave:make").err
    assert compress(model="this:make").code == 0


OUTPUTS = {
    "a number": ("users:a_number", "the network returns a float; expected tensors with the batch first"),
    "nothing": ("users:nothing", "the network returns a NoneType; expected tensors with the batch first"),
}


@pytest.mark.parametrize("what", OUTPUTS)
def test_an_output_without_tensors_is_named_by_its_type(compress: Command, what: str) -> None:
    write_module("users", USERS)
    model, message = OUTPUTS[what]
    done = compress(model=model)
    assert done.code == 3
    assert message in done.err
    assert "Wrap it in a module whose forward returns those." in done.err
    assert nothing_made()


def test_lazy_layers_get_their_sizes_from_the_input_shape(compress: Command, lrexport: Command) -> None:
    write_module("users", USERS)
    write_module("mine", DATA)
    untrained = ("--svd-epochs", "0", "--fine-tune-epochs", "0")
    done = compress("--data", "mine:fitting", *untrained, model="users:lazy")
    assert done.code == 0, done.err
    assert {"first", "second", "head"} <= load_record(Path("out")).plan.keys()
    assert lrexport("onnx", "out", "--rounds", "0").code == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "lazy_and_unused",
            "lazy layers that no input reaches, so their sizes are unknown: spare.weight, spare.bias",
        ),
        ("lazy_for_sequences", "the network does not accept an input of shape (3, 8, 8)"),
    ],
)
def test_lazy_layers_that_find_no_size_are_told(compress: Command, name: str, message: str) -> None:
    write_module("users", USERS)
    done = compress(model=f"users:{name}")
    assert done.code == 3
    assert message in done.err
    assert nothing_made()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("torch.relu7(x)", "the network raised AttributeError: module 'torch' has no attribute 'relu7'"),
        ("helper(x)", "the network raised NameError: name 'helper' is not defined"),
        ("nn.functional.relu(x, number=3)", "the network raised TypeError: "),
    ],
)
def test_a_fault_in_a_networks_own_code_is_told_with_its_line_and_not_as_a_wrong_shape(
    compress: Command, here: Path, line: str, said: str
) -> None:
    write_module(
        "faulty",
        f"""
        import torch
        from torch import nn
        class Net(nn.Module):
            input_shape = (3, 8, 8)
            def forward(self, x):
                return {line}
        """,
    )
    done = compress(model="faulty:Net")
    assert done.code == 3
    assert said in done.err
    assert f"It comes from {here / 'faulty.py'}, line 7." in done.err
    assert "--input-shape" not in done.err
    assert nothing_made()


def test_a_network_that_wants_two_inputs_is_told_what_it_is_called_with(compress: Command) -> None:
    write_module(
        "pair",
        """
        from torch import nn
        class Net(nn.Module):
            input_shape = (3, 8, 8)
            def forward(self, x, y):
                return x + y
        """,
    )
    done = compress(model="pair:Net")
    assert done.code == 3
    assert "missing 1 required positional argument: 'y'" in done.err
    assert "It was called with one tensor, whose first axis is the batch." in done.err
    assert "--input-shape" not in done.err


MISFITS = {
    "other channels": ("users:grey", 3, "image 0 of users:grey is torch.uint8 (1, 8, 8); expected uint8 (3, 8, 8)"),
    "another size": ("users:large", 3, "image 0 of users:large is torch.uint8 (3, 16, 16); expected uint8 (3, 8, 8)"),
    "fewer classes": ("users:seven", 3, "users:seven has 7 classes; the network has 10 outputs"),
    "classes only in test": ("users:more_classes_in_test", 3, "users:more_classes_in_test has labels from 0 to 11 in test"),
    "negative labels": ("users:negative", 3, "users:negative has labels from -1 to 9"),
    "another type": ("users:whole_numbers", 3, "image 0 of users:whole_numbers is torch.int64; expected floats"),
    "floats with NaN": ("users:with_nan", 3, "image 1 of users:with_nan has NaN or infinity in 1 of 192 values"),
    "two types": ("users:two_types", 3, "image 1 of users:two_types is torch.uint8, the first torch.float32"),
    "channels last": ("users:channels_last", 3, "The channels come first: (C, H, W)."),
    "objects": ("users:objects", 3, "image 0 of users:objects has array of object (3, 8, 8); expected a tensor"),
    "some labels": ("users:some_labels", 3, "image 1 of users:some_labels has another kind of target than the first"),
    "another kind of targets in test": ("users:half_labelled", 3, "users:half_labelled has other targets in test"),
    "a set that is none": ("users:number", 2, "--data 'users:number' returned int"),
    "two samples, one to train and one to test on": ("users:single", 3, "users:single has 1 training sample"),
    "a collate_fn that raises": ("users:uncollated", 2, "its collate_fn raised ZeroDivisionError: division by zero"),
    "a collate_fn that returns other shapes": ("users:miscollated", 3, "a batch of users:miscollated is torch.uint8"),
    "no images": ("users:empty", 3, "users:empty has no images"),
    "one image": ("users:one", 2, "users:one"),
    "a whole set with other channels": ("users:whole_grey", 3, "images (1, 8, 8); the network takes (3, 8, 8)"),
    "a whole set of another size": ("users:whole_large", 3, "images (3, 12, 8); the network takes (3, 8, 8)"),
    "a whole set with stray labels": ("users:whole_strays", 3, "has labels from 0 to 11"),
    "a whole set with negative labels": ("users:whole_negative", 3, "has labels from -1 to 8"),
    "a callable that raises": ("users:raising", 2, "raised OSError: the disk with the images is not mounted"),
    "a dataset that raises": ("users:broken", 2, "--data 'users:broken' raised KeyError: 'no such image' at item 0"),
    "a stream without an end": ("users:endless", 3, "users:endless gives more than 200,000 samples one after the other"),
    "a stream that raises": ("users:breaking_off", 2, "raised OSError: the camera is gone at item 2"),
    "CIFAR for another size": ("cifar10", 3, "cifar10 images are (3, 32, 32); the network takes (3, 8, 8)"),
    "a name that is none": ("cifar11", 2, "unknown --data 'cifar11'"),
    "a folder alone": ("pets", 2, "Did you mean folder:pets?"),
    "a folder of a wrong name": ("folder:petz", 3, "folder petz does not exist"),
    "a folder that is not there": ("folder:images", 3, "images needs the folders train and val (or test)"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_data_that_does_not_fit_is_told_before_any_training(compress: Command, what: str) -> None:
    write_module("users", DATA)
    Path("pets").mkdir()
    Path("data").mkdir()
    data, code, message = MISFITS[what]
    done = compress("--data", data, "--dense-epochs", "1", "--svd-epochs", "1", "--fine-tune-epochs", "1")
    assert done.code == code
    assert message in done.err
    assert "epoch" not in done.err
    assert nothing_made()


def test_an_image_folder_for_a_grey_network_is_told_with_the_channels(compress: Command) -> None:
    write_module(
        "grey",
        """
        from torch import nn
        def make():
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        make.input_shape = (1, 8, 8)
        """,
    )
    for part in ("train", "val"):
        Path("images", part).mkdir(parents=True)
    done = compress("--data", "folder:images", model="grey:make")
    assert done.code == 3
    assert "image folders give RGB images; the network takes 1 channels ((1, 8, 8))" in done.err
    assert nothing_made()


def test_data_that_fits_is_trained_on(compress: Command) -> None:
    write_module("users", DATA)
    quick = ("--svd-epochs", "1", "--fine-tune-epochs", "1", "--batch-size", "16", "--precision", "float32")
    done = compress("--data", "users:fitting", *quick)
    assert done.code == 0
    assert Path("out/model.safetensors").is_file()
