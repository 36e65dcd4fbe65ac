"""Networks as they are in the wild: dead, frozen, of another precision, called and built in unusual ways."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lrexport import load as lrexport_load
from lrexport.artifacts import tensors
from lrexport.plan import Pair
from lrexport.runs import loading
from lrexport.runs.record import load_record
from lrexport.trust.current_folder import import_here
from tests.hostile.support import Command, Outcome, nothing_made, write_module

NETWORKS = """
    import functools
    import threading
    import torch
    from torch import nn

    def network(make):
        def seeded(num_classes=10):
            torch.manual_seed(0)
            return make()
        seeded.input_shape = (1, 8, 8)
        return seeded

    def block(given, out, size=3):
        return [nn.Conv2d(given, out, size, padding=size // 2), nn.BatchNorm2d(out), nn.ReLU()]

    def plain():
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)]
        return nn.Sequential(*block(1, 16), *block(16, 24), *block(24, 24), *head)

    class Bottleneck(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Sequential(*block(1, 32)), nn.Linear(32, 10)
            self.inner = nn.Sequential(*block(32, 16, 1), *block(16, 16), nn.Conv2d(16, 32, 1))
            self.inner[4].weight.data.zero_()
            self.inner[4].bias.data.uniform_(0.1, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.head(torch.relu(x + self.inner(x)).mean((2, 3)))

    constant = network(Bottleneck)  # its last convolution is given the same everywhere

    @network
    def dead():  # and here the second one nothing but zeros
        made = nn.Sequential(*block(1, 4), *block(4, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
        made[1].bias.data.fill_(-100.0)
        return made

    @network
    def zero_head():
        made = plain()
        nn.init.zeros_(made[-1].weight)
        return made

    frozen = network(lambda: plain().requires_grad_(False))
    double = network(lambda: plain().double())
    half = network(lambda: plain().half())

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
            self.second, self.head = nn.Conv2d(16, 32, 3, padding=1), nn.Linear(32, 10)

        def forward(self, x):
            x = torch.relu(self.norm(input=self.first(input=x)))
            return self.head(input=torch.relu(self.second(input=x)).mean((2, 3)))

    named = network(Named)

    @network
    def patched():  # as wrapper libraries do it
        made = plain()
        made[3].forward = functools.partial(type(made[3]).forward, made[3])
        return made

    @network
    def hooked():
        made = plain()
        nn.utils.weight_norm(made[3])
        return made

    class Keeping(nn.Module):
        def __init__(self, what):
            super().__init__()
            self.made, self.what = plain(), what
            if what == "prior":
                self.prior = self.made[-1].weight.norm(dim=1)
            if what == "lock":
                self.kept = {"lock": threading.Lock(), "file": open(__file__)}

        def forward(self, x):
            logits = self.made(x)
            if self.what == "loss":
                self.loss = logits.square().mean()
            return logits

    keeping_loss = network(lambda: Keeping("loss"))
    keeping_prior = network(lambda: Keeping("prior"))
    keeping_lock = network(lambda: Keeping("lock"))

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3), nn.Linear(32, 10)
            self.register_buffer("mask", torch.full((36, 36), float("-inf")).triu(1))

        def forward(self, x):
            x = self.second(self.first(x)).flatten(2)
            return self.last(((x.mT @ x + self.mask).softmax(-1) @ x.mT).mean(1))

    masked = network(Masked)

    @network
    def prepared():
        import torch.ao.quantization as quantization
        made = plain().train()
        made.qconfig = quantization.get_default_qat_qconfig("x86")
        return quantization.prepare_qat(made)

    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.head = [nn.Conv2d(1, 16, 3), nn.ReLU()], nn.Linear(16, 10)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.head(x.mean((2, 3)))

    listed = network(Listed)

    @network
    def scripted_layers():
        made = plain()
        made[3] = torch.jit.script(made[3])
        return made

    @network
    def scripted():
        made = plain()
        made[2] = torch.jit.script(nn.Hardswish())
        return made

    @network
    def compiled():
        made = plain()
        made[3] = torch.compile(made[3])
        return torch.compile(made)

    class Two(nn.Module):
        def __init__(self, always):
            super().__init__()
            self.made, self.always = plain(), always

        def forward(self, x):
            logits = self.made(x)
            return (logits, logits.softmax(1)) if self.always or self.training else logits

    normalised = network(lambda: nn.Sequential(nn.BatchNorm2d(1), nn.AdaptiveAvgPool2d((2, 5)), nn.Flatten()))
    two = network(lambda: Two(True))
    two_in_training = network(lambda: Two(False))
    plain_again = network(plain)

    class InTraining(nn.Module):
        def __init__(self, output, draws=False):
            super().__init__()
            self.made, self.output = plain(), output

        def forward(self, x, targets=None):
            logits = self.made(x)
            return self.output(self, logits, targets) if self.training else logits

    loss_of_targets = network(lambda: InTraining(lambda self, y, t: nn.functional.cross_entropy(y, t)))
    loss_alone = network(lambda: InTraining(lambda self, y, t: y.square().mean()))
    features = network(lambda: InTraining(lambda self, y, t: y[:, :5]))
    classes = network(lambda: InTraining(lambda self, y, t: y.argmax(1, keepdim=True).expand(-1, 10)))
    a_dict = network(lambda: InTraining(lambda self, y, t: {"out": y}))

    def penalised(self, y, t):  # needs gradients in its own forward
        weight = self.made[0].weight
        return y + torch.autograd.grad(weight.square().sum(), weight, create_graph=True)[0].mean()

    penalty = network(lambda: InTraining(penalised))

    class Nan(nn.Module):
        def __init__(self):
            super().__init__()
            self.made = plain()

        def forward(self, x):  # of a kind that noise does not show: an image that is dark on one side
            logits = self.made(x)
            if self.training:
                return logits
            varied = x[:, :, :, 0].std((1, 2)) > 0
            return logits + 0 * varied.float().log()[:, None]

    nan_on_some = network(Nan)
"""
DATA = ("--data", "digits", "--precision", "float32", "--batch-size", "64", "--heldout", "0.5")
UNTRAINED = ("--dense-epochs", "0", "--svd-epochs", "0", "--fine-tune-epochs", "0")


@pytest.fixture
def prune(here: Path, compress: Command) -> Command:
    write_module("networks", NETWORKS)

    def command(name: str, *arguments: str | Path) -> Outcome:
        return compress(*arguments, model=f"networks:{name}")

    return command


@pytest.mark.usefixtures("prune")
@pytest.mark.parametrize(("name", "goal"), [("constant", ("--macs", "0.3")), ("dead", ("--energy", "0.1"))])
def test_layers_that_are_given_constants_are_pruned_like_others(name: str, goal: tuple[str, str], lrexport: Command) -> None:
    output = lrexport("compress", f"networks:{name}", *DATA, *UNTRAINED, *goal, "-o", "out")
    assert output.code == 0, output.err
    assert any(isinstance(layer, Pair) for layer in load_record(Path("out")).plan.values())
    assert all(bool(value.isfinite().all()) for value in tensors.load(Path("out/model.safetensors")).values())


def test_a_head_of_zeros_trains_in_svd_form(prune: Command) -> None:
    options = ("--dense-epochs", "0", "--svd-epochs", "2", "--fine-tune-epochs", "0", "--distill", "0", "--lr", "0.05")
    output = prune("zero_head", *DATA, *options)
    assert output.code == 0, output.err
    assert float(tensors.load(Path("out/svd.safetensors"))["11.parametrizations.weight.original1"].abs().max()) > 0.01


def test_frozen_weights_heal_like_others(prune: Command) -> None:
    options = ("--dense-epochs", "0", "--svd-epochs", "1", "--fine-tune-epochs", "1", "--distill", "0")
    output = prune("frozen", *DATA, *options)
    assert output.code == 0, output.err
    dense, svd = (tensors.load(Path(f"out/{name}.safetensors")) for name in ("dense", "svd"))
    assert not torch.equal(dense["0.bias"], svd["0.bias"])


@pytest.mark.parametrize("name", ["double", pytest.param("half", marks=pytest.mark.slow)])
@pytest.mark.parametrize("data", [pytest.param(DATA, marks=pytest.mark.slow), ()], ids=["data", "no data"])
def test_networks_of_another_precision_become_float32(
    name: str, data: tuple[str, ...], prune: Command, lrexport: Command
) -> None:
    output = prune(name, *data, *(UNTRAINED if data else ()))
    assert output.code == 0, output.err
    assert {value.dtype for value in tensors.load(Path("out/model.safetensors")).values()} <= {torch.float32, torch.int64}
    output = lrexport("onnx", "out", "--rounds", "0")
    assert output.code == 0, output.err


def test_layers_that_are_called_by_the_name_of_their_argument_are_factorised_and_refitted(prune: Command) -> None:
    output = prune("named", *DATA, *UNTRAINED)
    assert output.code == 0, output.err
    assert isinstance(load_record(Path("out")).plan["second"], Pair)


def test_a_layer_that_somebody_changed_stays_as_it_is_and_the_others_do_not(prune: Command) -> None:
    output = prune("patched")
    assert output.code == 0, output.err
    plan = load_record(Path("out")).plan
    assert not isinstance(plan.get("3"), Pair)
    assert isinstance(plan["6"], Pair)


def test_weights_that_are_computed_are_folded_once_their_checkpoint_is_loaded(prune: Command, lrexport: Command) -> None:
    made = import_here("networks").hooked()
    with torch.no_grad():
        made[3].weight_g.mul_(3)
    torch.save({"state_dict": made.state_dict()}, "w.pt")
    output = prune("hooked", "--weights", "w.pt")
    assert output.code == 0, output.err
    note = "folded weight_norm of 1 weight into plain ones"
    assert output.err.count(note) == 1
    assert note in load_record(Path("out")).notes
    assert getattr(load_record(Path("out")).plan["3"], "kind", "") != "unsupported"
    dense = loading.load_start(Path("out"), load_record(Path("out")))
    images = torch.randn(2, 1, 8, 8)
    assert torch.allclose(dense(images), made.eval()(images), rtol=1e-5, atol=1e-6)
    assert not any("weight_" in name for name in lrexport_load("out").state_dict())
    output = lrexport("compress", "out", "--macs", "0.5", "-o", "again")
    assert output.code == 0, output.err


@pytest.mark.parametrize("name", ["loss", "prior", "lock"])
@pytest.mark.parametrize("data", [pytest.param(DATA, marks=pytest.mark.slow), ()], ids=["data", "no data"])
def test_what_a_network_keeps_on_its_modules_is_in_nobodys_way(name: str, data: tuple[str, ...], prune: Command) -> None:
    training = ("--dense-epochs", "1", "--svd-epochs", "1", "--fine-tune-epochs", "1") if data else ()
    output = prune(f"keeping_{name}", *data, *training)
    assert output.code == 0, output.err
    assert isinstance(load_record(Path("out")).plan["made.6"], Pair)


def test_a_mask_of_infinity_is_no_weight(prune: Command, lrexport: Command) -> None:
    output = prune("masked")
    assert output.code == 0, output.err
    assert bool(tensors.load(Path("out/model.safetensors"))["mask"].isinf().any())
    output = lrexport("onnx", "out", "--rounds", "0")
    assert output.code == 0, output.err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("prepared", 2, "'0' is prepared for quantisation (Conv2d)"),
        ("listed", 3, "the network uses weights that are not in its state dict: layers[0].weight, layers[0].bias"),
        ("scripted_layers", 2, "'3' is TorchScript (Conv2d), whose layers cannot be changed"),
    ],
)
def test_networks_that_cannot_be_compressed_are_refused_by_name_before_training(
    name: str, code: int, said: str, prune: Command
) -> None:
    output = prune(name, *DATA, "--dense-epochs", "1")
    assert output.code == code
    assert said in " ".join(output.err.split())
    assert nothing_made()


BRANCHING = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 4)
    def forward(self, x):
        x = self.body(x)
        return self.head((x if x.mean() > 0 else 2 * x).mean((2, 3)))
def make():
    return Net()
make.input_shape = (3, 8, 8)
"""


@pytest.mark.usefixtures("export_checks")
def test_what_no_graph_can_express_is_refused_before_any_work_unless_no_graph_is_wanted(lrexport: Command) -> None:
    write_module("branching", BRANCHING)
    command = ["compress", "branching:make", "--macs", "0.6", "-o", "out", "--device", "cpu"]
    refused = lrexport(*command)
    assert refused.code == 3
    assert "its forward branches on values of a tensor" in " ".join(refused.err.split())
    assert "--no-export-check" in refused.err
    assert nothing_made()
    assert lrexport(*command, "--no-export-check").code == 0


@pytest.mark.parametrize("name", ["scripted", pytest.param("compiled", marks=pytest.mark.slow)])
def test_scripted_activations_and_compiled_parts_are_compressed_and_exported(
    name: str, prune: Command, lrexport: Command
) -> None:
    output = prune(name)
    assert output.code == 0, output.err
    assert ("note: removed torch.compile from" in output.err) == (name == "compiled")
    output = lrexport("onnx", "out", "--rounds", "0")
    assert output.code == 0, output.err


def test_a_network_with_several_outputs_is_refused_with_what_was_wanted(prune: Command) -> None:
    output = prune("two", *DATA, *UNTRAINED)
    assert output.code == 3
    assert "the network returns a tuple; expected one tensor (batch, classes)" in output.err


@pytest.mark.slow
def test_of_a_network_with_several_outputs_in_training_the_first_is_trained_on_and_that_is_said(prune: Command) -> None:
    options = ("--dense-epochs", "1", "--svd-epochs", "1", "--fine-tune-epochs", "0", "--distill", "0")
    output = prune("two_in_training", *DATA, *options)
    assert output.code == 0, output.err
    assert "in training mode the network returns 2 outputs: only the first is trained" in output.err
    plain = prune("plain_again", *DATA, *options, "-o", "same")
    assert plain.code == 0, plain.err
    ours, theirs = (tensors.load(Path(f"{folder}/svd.safetensors")) for folder in ("out", "same"))
    assert all(torch.equal(value, theirs[name.removeprefix("made.")]) for name, value in ours.items())


def test_where_nothing_can_be_factorised_training_goes_on_all_the_same(prune: Command, lrexport: Command) -> None:
    output = lrexport(
        "train", "networks:zero_head", *DATA, "--svd-epochs", "1", "--keep", "*", "--distill", "0", "-o", "kept"
    )
    assert output.code == 0, output.err


def test_a_network_without_macs_is_pruned_to_itself(prune: Command, lrexport: Command) -> None:
    training = ("--dense-epochs", "0", "--svd-epochs", "2", "--falling-ranks", "--fine-tune-epochs", "0", "--distill", "0")
    output = prune("normalised", *DATA, *training)
    assert output.code == 0, output.err
    assert "0 layers cut to 100.00 % of the MACs" in output.err
    assert "plan: 0 of 0 MACs (—)" in output.err
    output = lrexport("compress", "networks:normalised", "--macs", "0.5", "--dry-run")
    assert (output.code, output.out) == (0, "0 of 0 MACs (—), counted on the torch network.\n")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("loss_of_targets", "in training mode the network raises TypeError: cross_entropy_loss()"),
        ("loss_alone", "in training mode the network returns a single number, probably a loss"),
        ("features", "in training mode the network returns float32 of shape (2, 5) for two images of 10 classes"),
        ("classes", "in training mode the network returns int64 of shape (2, 10) for two images of 10 classes"),
        ("a_dict", "in training mode the network returns a dict; expected one tensor, as in eval mode"),
    ],
)
def test_a_network_that_returns_no_logits_in_training_is_refused_before_any_training(
    name: str, said: str, prune: Command
) -> None:
    output = prune(name, *DATA, "--dense-epochs", "1")
    assert output.code == 3
    assert said in output.err
    assert "epoch 1/" not in output.err
    assert nothing_made()


def test_where_nothing_is_trained_what_a_network_returns_in_training_does_not_matter(prune: Command) -> None:
    output = prune("loss_of_targets", *DATA, *UNTRAINED, "--no-export-check")
    assert output.code == 0, output.err


def test_a_network_that_needs_gradients_in_training_trains(prune: Command) -> None:
    output = prune("penalty", *DATA, "--dense-epochs", "1", "--svd-epochs", "0", "--fine-tune-epochs", "0")
    assert output.code == 0, output.err


@pytest.mark.parametrize("options", [UNTRAINED, ("--dense-epochs", "1")], ids=["untrained", "trained"])
def test_a_network_that_gives_nan_has_no_score_and_is_named(options: tuple[str, ...], prune: Command) -> None:
    output = prune("nan_on_some", *DATA, *options)
    assert output.code == 3
    assert re.search(r"the network gives NaN on \d+ of \d+ held-out images, so it has no score", output.err)
    assert not Path("out/run.json").exists() or load_record(Path("out")).results.compressed is None


def test_a_run_from_before_computed_weights_were_folded_is_still_read(prune: Command, lrexport: Command) -> None:
    assert prune("hooked", "--macs", "0.9").code == 0
    run, record = Path("out"), load_record(Path("out"))
    for name in ("dense", "model"):  # as it was written then
        weights = tensors.load(run / f"{name}.safetensors")
        if "3.weight" in weights:
            weight = weights.pop("3.weight")
            weights |= {"3.weight_v": weight, "3.weight_g": weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)}
        tensors.save(run / f"{name}.safetensors", weights)
        record = record.sealed(run, f"{name}.safetensors")
    record.save(run)
    images = torch.randn(2, 1, 8, 8)
    made = import_here("networks").hooked().eval()
    assert torch.allclose(loading.load_start(run, record)(images), made(images), atol=1e-5)
    assert lrexport_load(run)(images).isfinite().all()
    assert lrexport("onnx", run, "--rounds", "0").code == 0
