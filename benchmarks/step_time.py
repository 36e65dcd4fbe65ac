"""A training step in SVD form over the dense step, beside two other ways to train low-rank, interleaved in one process.

- composed: lrexport's SVD form, with orthogonality (equation 1) and Hoyer (equation 2) over all layers
- implicit: lrexport's implicit form, with Hoyer; a step between two refreshes of the singular vectors, and, as "with
  refreshes", that plus a refresh (timed in the same rounds) over the steps that lrexport leaves between two of them
- two-layer: the paper's form, each layer run as its two full-rank halves, with the same regularisers
- SVD each step: the dense network with `torch.linalg.svdvals` of every layer's matrix at every step (nuclear norm)

    python benchmarks/step_time.py [--rounds 8] [--threads 2]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from common import interleaved, machine, write_markdown
from torch import Tensor, nn

from lrexport.lowrank.eligibility.inspection import inspect_layers
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.svd_form import exact_svd
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.lowrank.regularisation.implicit import ImplicitRegularisers, steps_between_refreshes
from lrexport.lowrank.regularisation.regularisers import hoyer, losses, orthogonality
from lrexport.measure.statistics import spread
from lrexport.networks.building import resolve
from lrexport.plan import Scheme
from lrexport.training.engine import to_fast_layout

CASES = (
    ("resnet20", "resnet20", (3, 32, 32), 128),
    ("ResNet-18", "torchvision:resnet18?num_classes=10", (3, 64, 64), 128),
)
LAMBDA_O, LAMBDA_S = 1.0, 0.03


class TwoLayer(nn.Module):
    """The paper's layer: two convolutions whose weights are U·sqrt|s| and sqrt|s|·Vᵀ, U, s, V trainable."""

    def __init__(self, layer: nn.Module, scheme: Scheme) -> None:
        super().__init__()
        self.spec = spec_of(layer)
        matrix = SCHEMES[scheme].matrix(layer.weight.detach(), self.spec)
        self.left, self.singular, self.right = (nn.Parameter(part) for part in exact_svd(matrix)[:3])
        self.first, self.second = SCHEMES[scheme].pair(layer, len(self.singular))
        self.scheme, self.bias = scheme, layer.bias
        for half in (self.first, self.second):
            del half.weight

    def forward(self, x: Tensor) -> Tensor:
        scale = self.singular.abs().sqrt()
        weights = SCHEMES[self.scheme].weights(self.left * scale, (self.right * scale).T, self.spec)
        for half, weight in zip((self.first, self.second), weights, strict=True):
            half.weight = weight
        return self.second(self.first(x))


def two_layer(network: nn.Module, shape: tuple[int, ...], scheme: Scheme) -> tuple[nn.Module, Callable[[], Tensor]]:
    facts = decompose(copy.deepcopy(network), shape, scheme).layers
    layers = []
    for name, fact in facts.items():
        parent, _, child = name.rpartition(".")
        layers.append(TwoLayer(network.get_submodule(name), fact.scheme))
        setattr(network.get_submodule(parent), child, layers[-1])

    def extra() -> Tensor:
        parts = [LAMBDA_O * orthogonality(m.left, m.right) + LAMBDA_S * hoyer(m.singular) for m in layers]
        return torch.stack(parts).sum()

    return network, extra


def svd_each_step(network: nn.Module, shape: tuple[int, ...], scheme: Scheme) -> tuple[nn.Module, Callable[[], Tensor]]:
    facts = {n: f for n, f in inspect_layers(network, shape, scheme).items() if hasattr(f, "scheme")}

    def extra() -> Tensor:
        layers = [(network.get_submodule(name), fact.scheme) for name, fact in facts.items()]
        values = [torch.linalg.svdvals(SCHEMES[s].matrix(layer.weight, spec_of(layer))) for layer, s in layers]
        return LAMBDA_S * torch.stack([singular.sum() for singular in values]).sum()

    return network, extra


def composed(network: nn.Module, shape: tuple[int, ...], scheme: Scheme) -> tuple[nn.Module, Callable[[], Tensor]]:
    svd = decompose(network, shape, scheme)
    return network, lambda: losses(svd, LAMBDA_O, LAMBDA_S)


def implicit(network: nn.Module, shape: tuple[int, ...], scheme: Scheme, batch: int) -> ImplicitRegularisers:
    svd = decompose(network, shape, scheme, form="implicit")
    return ImplicitRegularisers(svd, LAMBDA_S, every=steps_between_refreshes(svd, batch))


def stepper(network: nn.Module, extra: Callable[[], Tensor] | None, images: Tensor, labels: Tensor) -> Callable[[], None]:
    to_fast_layout(network, tuple(images.shape[1:])).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        loss = F.cross_entropy(network(images), labels)
        (loss if extra is None else loss + extra()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(
    model: str, shape: tuple[int, int, int], batch: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, tuple[int, list[float]]]]:
    """Seconds of steps by label; and of refreshes, with the steps between two of them."""
    dense = resolve(model, shape).build()
    images = torch.randn(batch, *shape).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))
    between: dict[str, int] = {}
    steps: dict[str, Callable[[], object]] = {"dense": stepper(copy.deepcopy(dense), None, images, labels)}
    for scheme in ("spatial", "channel"):
        for label, make in (("composed", composed), ("two-layer", two_layer), ("SVD each step", svd_each_step)):
            network, extra = make(copy.deepcopy(dense), shape, scheme)
            steps[f"{scheme}, {label}"] = stepper(network, extra, images, labels)
        network = copy.deepcopy(dense)
        regulariser = implicit(network, shape, scheme, batch)
        step = stepper(network, regulariser, images, labels)
        regulariser.refresh()
        steps[f"{scheme}, implicit"] = step
        steps[f"{scheme}, refresh"] = regulariser.refresh
        between[scheme] = regulariser.every
    samples = interleaved(steps, rounds, warm_up=2)
    return samples, {scheme: (every, samples.pop(f"{scheme}, refresh")) for scheme, every in between.items()}


def _refresh(scheme: str, every: int, seconds: list[float]) -> str:
    return f"A refresh of {scheme} takes {1e3 * spread(seconds).p50:.0f} ms (median), once in {every} steps."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [f"Median of {options.rounds} interleaved rounds, {options.threads} threads, channels_last, float32.", ""]
    for title, model, shape, batch in CASES:
        samples, refreshes = measure(model, shape, batch, options.rounds)
        for scheme, (every, seconds) in refreshes.items():
            with_them = [one + other / every for one, other in zip(samples[f"{scheme}, implicit"], seconds, strict=True)]
            samples[f"{scheme}, implicit with refreshes"] = with_them
        lines += [f"## {title} at {shape[1]}×{shape[2]}, batch {batch}", ""]
        lines += ["| step | median ms | IQR ms | over dense | IQR of the ratio |", "|---|---:|---:|---:|---:|"]
        for name, times in samples.items():
            found = spread([1e3 * value for value in times])
            ratio = spread([mine / other for mine, other in zip(times, samples["dense"], strict=True)])
            lines.append(
                f"| {name} | {found.p50:.0f} | {found.iqr:.0f} | {ratio.p50:.2f} | {ratio.p25:.2f}–{ratio.p75:.2f} |"
            )
        lines += ["", *(_refresh(scheme, *facts) for scheme, facts in refreshes.items()), ""]
    lines += ["Goal for the implicit form, refreshes included: at most 1.05.", ""]
    lines += ["Goal for the composed form: at most 1.10 for ResNet-20, at most 1.05 for ResNet-18."]
    write_markdown(Path("step_time.md"), "Time of a training step in SVD form", lines, machine())


if __name__ == "__main__":
    main()
