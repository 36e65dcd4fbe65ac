"""One stage of training: it learns, it repeats itself, it keeps the best epoch, it stops at NaN."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrexport.data.images import ArraySet, ImageData, Splits, hold_out
from lrexport.errors import InputError, UsageError
from lrexport.events import EpochDone, Event, StepDone, ignore_events
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.svd_form import factors
from lrexport.lowrank.regularisation.regularisers import ExtraLoss
from lrexport.training.engine import _has_fast_bfloat16, make_fabric, ran_on, to_fast_layout
from lrexport.training.loops import Stage, step_milliseconds, train_stage
from lrexport.training.optimizers import parameter_groups
from lrexport.training.schedules import learning_rate


def bright_and_dark(count: int = 240) -> Splits:
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 120, (count, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    images = (noise + 100 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    part = ArraySet(images, labels)
    return hold_out(ImageData("bright", ["dark", "bright"], part, part), 0.2)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2))


class NotFinite(ExtraLoss):
    """A term that is NaN in every step."""

    def forward(self) -> Tensor:
        return torch.tensor(math.nan)


def train(net: nn.Module, stage: Stage, **more: Any) -> list[Event]:
    events: list[Event] = []
    train_stage(net, bright_and_dark(), stage, make_fabric("cpu", "float32"), events.append, **more)
    return events


def test_training_learns_and_the_same_seed_gives_the_same_bits() -> None:
    stage = Stage("dense", epochs=3, lr=0.05, batch_size=32, seed=3)
    first, second = network(), network()
    events = train(first, stage)
    train(second, stage)
    epochs = [event for event in events if isinstance(event, EpochDone)]
    assert epochs[-1].heldout_score > 0.95
    assert [event.epoch for event in epochs] == [1, 2, 3]
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_weight_decay_is_for_ordinary_weights_and_never_for_the_factors() -> None:
    net = network()
    svd = decompose(net, (3, 6, 6))
    decayed, free = parameter_groups(net, 0.1)
    factors_of = {id(p) for name in svd.layers for p in factors(net.get_submodule(name))}
    assert {id(parameter) for parameter in free["params"]} == factors_of
    assert {id(parameter) for parameter in decayed["params"]} == {id(p) for p in net.parameters()} - factors_of
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)


def test_the_best_epoch_on_held_out_images_is_kept_unless_asked_otherwise() -> None:
    states: list[dict[str, torch.Tensor]] = []

    def remember(epoch: int, net: nn.Module) -> None:
        states.append({name: value.clone() for name, value in net.state_dict().items()})
        if epoch == 2:  # ruin what the third epoch starts from, so that the second is the best
            for parameter in net.parameters():
                parameter.data.zero_()

    for keep_best in (True, False):
        states.clear()
        net = network()
        stage = Stage("dense", epochs=3, lr=0.05, batch_size=32, keep_best=keep_best)
        events = [event for event in train(net, stage, after_epoch=remember) if isinstance(event, EpochDone)]
        scores = [event.heldout_score for event in events]
        assert scores[2] <= 0.6 < scores[1]
        kept = scores.index(max(scores)) if keep_best else 2
        if kept != 1:  # the second epoch's weights were ruined after they were scored
            assert all(torch.equal(value, states[kept][name]) for name, value in net.state_dict().items())


def test_a_loss_that_is_not_finite_stops_with_step_and_rate_and_spares_the_weights() -> None:
    net = network()
    before = [parameter.clone() for parameter in net.parameters()]
    with pytest.raises(InputError, match=r"the loss is nan at step 4 of epoch 1 \(dense, learning rate 0\.025\)"):
        train(net, Stage("dense", 1, 0.05, 32), extra_loss=NotFinite())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(before, net.parameters(), strict=True))


def test_an_epoch_of_few_steps_without_a_finite_loss_is_divergence_and_spares_batchnorm() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 2))
    with pytest.raises(InputError, match="the loss is nan at step 2 of epoch 1"):
        train(net, Stage("dense", 2, 0.05, 100), extra_loss=NotFinite())
    assert torch.equal(net[0].running_mean, torch.zeros(3))


def test_training_never_ends_worse_than_it_began_on_held_out_images() -> None:
    net = network()
    train(net, Stage("dense", epochs=3, lr=0.05, batch_size=32))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    events = train(net, Stage("baseline", epochs=1, lr=1e-12, batch_size=32), after_epoch=ruin)
    assert events
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def ruin(epoch: int, net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.data.zero_()


def test_distillation_alone_pulls_the_student_to_the_teacher() -> None:
    teacher, student = network(), network()
    train(teacher, Stage("dense", epochs=3, lr=0.05, batch_size=32))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch, _ = next(iter(bright_and_dark().heldout.batches(48, torch.device("cpu"))))
    images = batch.only

    def gap() -> float:
        return float((teacher(images).softmax(1) - student.eval()(images).softmax(1)).detach().abs().mean())

    before = gap()
    train(student, Stage("fine-tune", epochs=4, lr=0.05, batch_size=32, distill=1.0), teacher=teacher)
    assert gap() < 0.5 * before


def test_the_teacher_runs_in_the_precision_of_training() -> None:
    student, teacher = network(), network()
    with torch.no_grad():
        teacher[0].weight.mul_(2)
    seen: list[tuple[torch.dtype, bool]] = []

    def look(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        if len(output) > 1:  # one image shows before which layout it takes
            seen.append((output.dtype, output.requires_grad))

    teacher[0].register_forward_hook(look)
    stage = Stage("fine-tune", epochs=1, lr=0.05, batch_size=32, distill=0.5)
    train_stage(student, bright_and_dark(), stage, make_fabric("cpu", "bfloat16"), ignore_events, teacher=teacher)
    assert set(seen) == {(torch.bfloat16, False)}


@pytest.mark.parametrize(
    ("schedule", "progress", "wanted"),
    [
        ("cosine", 0.1, 1.0),
        ("cosine", 0.55, 0.5),
        ("cosine", 1.0, 0.0),
        ("cosine", 0.05, 0.5),
        ("step", 0.49, 1.0),
        ("step", 0.5, 0.1),
        ("step", 0.75, 0.01),
    ],
)
def test_learning_rates(schedule: Any, progress: float, wanted: float) -> None:
    assert learning_rate(1.0, schedule, progress, warmup=0.1, milestones=(0.5, 0.75)) == pytest.approx(wanted)


class Volume(nn.Module):
    """Images as volumes of one slice: weights of four and of five axes in one network."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Conv2d(3, 4, 3)
        self.deep = nn.Conv3d(4, 4, (1, 3, 3))
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.deep(torch.relu(self.flat(x)).unsqueeze(2))).flatten(1))


def test_a_network_with_weights_of_five_axes_trains() -> None:
    net = Volume()
    events = train(net, Stage("dense", epochs=2, lr=0.05, batch_size=32))
    losses = [event.loss for event in events if isinstance(event, EpochDone)]
    assert losses[1] < losses[0]


def test_the_fast_layout_is_for_weights_of_four_axes_and_changes_no_value() -> None:
    net = Volume()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert to_fast_layout(net, (3, 6, 6)) is net
    assert net.flat.weight.is_contiguous(memory_format=torch.channels_last)
    assert not net.flat.weight.is_contiguous()
    assert net.deep.weight.is_contiguous()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Viewing(nn.Module):
    """As many a tutorial flattens: an error in channels_last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(128, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x))
        return self.head(x.view(x.size(0), -1))  # type: ignore[no-any-return]


def test_a_network_that_flattens_by_view_trains_taught_by_one_in_channels_last_and_the_other_way_round() -> None:
    for net, teacher in ((Viewing(), network()), (network(), Viewing())):
        stage = Stage("fine-tune", epochs=3, lr=0.05, batch_size=32, distill=0.5)
        events = train(net, stage, teacher=teacher)
        assert [event.heldout_score for event in events if isinstance(event, EpochDone)][-1] > 0.9
    assert to_fast_layout(Viewing(), (3, 6, 6)).conv.weight.is_contiguous()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_learns_the_same() -> None:
    plain, compiled = network(), network()
    one = train(plain, Stage("dense", epochs=1, lr=0.05, batch_size=64))
    other = train(compiled, Stage("dense", epochs=1, lr=0.05, batch_size=64, compile=True))
    losses = [[event.loss for event in events if isinstance(event, EpochDone)] for events in (one, other)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_portions_of_a_batch_give_the_gradients_of_the_whole() -> None:
    whole, portions = network(), network()
    one = train(whole, Stage("dense", epochs=2, lr=0.05, batch_size=50))
    other = train(portions, Stage("dense", epochs=2, lr=0.05, batch_size=50, accumulate=4))
    losses = [[event.loss for event in events if isinstance(event, StepDone)] for events in (one, other)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_batch_that_cannot_be_portioned_is_refused() -> None:
    with pytest.raises(UsageError, match="a batch of 2 images is too small for 1 processes and 3 portions"):
        train(network(), Stage("dense", epochs=1, lr=0.05, batch_size=2, accumulate=3))


@pytest.mark.parametrize("has_it", [False, True])
def test_bfloat16_is_for_gpus_that_have_it_and_never_for_cpus_unless_asked(
    has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)
    assert ran_on(make_fabric("cpu"))["precision"] == "32-true"
    assert _has_fast_bfloat16("cuda") == has_it


def test_a_record_names_the_gpu_that_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    fabric = make_fabric("cpu", "bfloat16")
    assert ran_on(fabric) == {"device": "cpu", "precision": "bf16-mixed"}
    monkeypatch.setattr(type(fabric), "device", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", {torch.device("cuda", 0): "a GPU"}.get)
    assert ran_on(fabric) == {"device": "cuda:0", "accelerator": "a GPU", "precision": "bf16-mixed"}


def with_norm_on_vectors() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 2))


@pytest.mark.parametrize(("batch", "portions", "steps"), [(2, 1, 8), (6, 3, 2), (3, 1, 6)])
def test_a_last_batch_with_a_single_image_in_a_portion_is_left_out(batch: int, portions: int, steps: int) -> None:
    splits, events = bright_and_dark(21), []
    assert len(splits.train) == 17
    stage = Stage("dense", epochs=1, lr=0.01, batch_size=batch, accumulate=portions)
    train_stage(with_norm_on_vectors(), splits, stage, make_fabric("cpu", "float32"), events.append)
    assert sum(isinstance(event, StepDone) for event in events) == steps


@pytest.mark.parametrize(("batch", "portions"), [(1, 1), (8, 8), (8, 5)])
def test_portions_of_one_image_are_refused_where_batchnorm_would_have_one_value_of_it(batch: int, portions: int) -> None:
    stage = Stage("dense", epochs=1, lr=0.01, batch_size=batch, accumulate=portions)
    message = rf"BatchNorm needs several images at a time \(.*3\); a batch of {batch} images in {portions} portions"
    fabric, splits = make_fabric("cpu", "float32"), bright_and_dark(21)
    with pytest.raises(UsageError, match=message):
        train_stage(with_norm_on_vectors(), splits, stage, fabric, [].append)
    with pytest.raises(UsageError, match=message):
        step_milliseconds(with_norm_on_vectors(), splits, stage, fabric)
    on_images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 2))
    train_stage(on_images, splits, stage, fabric, [].append)
