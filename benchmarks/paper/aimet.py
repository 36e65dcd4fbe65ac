"""Spatial SVD by AIMET, its ranks chosen by AIMET's greedy search: the run of another tool that the table `others` holds.

    AIMET-PYTHON -m benchmarks.paper.aimet resnet20 --weights FILE --data folder:DIR --share 0.303 -o FILE.safetensors

It runs in an environment of AIMET's own (README.md beside this says how to make one), and leaves the compressed network's
weights, each layer that was split as a pair `first`, `second`. What AIMET itself writes lies in `data` beside them; the
scores of its search are among that, and serve every other share of the same network.
"""

from __future__ import annotations

import argparse
import os
from collections import OrderedDict
from decimal import Decimal
from pathlib import Path

import torch
from torch import nn

from lrexport.artifacts import tensors
from lrexport.data.datasets import load_data
from lrexport.data.images import ImageSet, draw, hold_out
from lrexport.networks.building import resolve
from lrexport.networks.weights import load_weights
from lrexport.tasks.scoring import score
from lrexport.torch_tools.import_torchvision import torchvision

torchvision()  # AIMET imports it, and lrexport knows how beside a CPU build of torch

from aimet_torch.common.comp_ratio_select import GreedyCompRatioSelectAlgo  # noqa: E402
from aimet_torch.common.defs import CompressionScheme, CostMetric, GreedySelectionParameters  # noqa: E402
from aimet_torch.compress import ModelCompressor  # noqa: E402
from aimet_torch.defs import SpatialSvdParameters  # noqa: E402

CPU = torch.device("cpu")
SHAPE = (3, 32, 32)
IMAGES = 2000  # held-out ones, by which the search scores every layer at every candidate
STEP = Decimal("0.002")  # of the share that is asked for, where the search ended above it: twice its own tolerance


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.paper.aimet", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--share", type=Decimal, required=True, help="Of the dense network's MACs, at most.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()

    network = resolve(options.model, SHAPE).build()
    load_weights(network, options.weights)
    splits = hold_out(load_data(options.data, SHAPE), seed=options.seed)
    out = options.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    os.chdir(out.parent)  # AIMET writes where it runs
    small = compress(network, draw(splits.heldout, IMAGES, options.seed), options.share)
    tensors.save(out, with_pairs(small).state_dict())


def compress(network: nn.Module, images: ImageSet, share: Decimal) -> nn.Module:
    """The network at no more than ``share`` of its MACs, by AIMET's defaults."""
    target = share
    while target > 0:
        small, found = _searched(network, images, target)
        if found <= share:
            print(f"AIMET: {found} of the MACs", flush=True)
            return small
        target -= STEP
    raise SystemExit(f"AIMET finds nothing at {share} of the MACs")


def _searched(network: nn.Module, images: ImageSet, target: Decimal) -> tuple[nn.Module, Decimal]:
    """What AIMET finds for a target, and the share of the MACs that it came to."""
    scores = GreedyCompRatioSelectAlgo.PICKLE_FILE_EVAL_DICT
    greedy = GreedySelectionParameters(target, saved_eval_scores_dict=scores if Path(scores).is_file() else None)
    auto = SpatialSvdParameters.AutoModeParams(greedy)
    small, stats = ModelCompressor.compress_model(
        network,
        eval_callback=lambda model, _iterations, use_cuda: score(model, images, CPU, "heldout").top1,
        eval_iterations=None,
        input_shape=(1, *SHAPE),
        compress_scheme=CompressionScheme.spatial_svd,
        cost_metric=CostMetric.mac,
        parameters=SpatialSvdParameters(SpatialSvdParameters.Mode.auto, auto),
    )
    return small, Decimal(stats.mac_compression_ratio)


def with_pairs(network: nn.Module) -> nn.Module:
    """The network itself, the halves of its pairs named as lrexport names them."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Sequential) and [type(each) for each in module] == [nn.Conv2d, nn.Conv2d]:
            first, second = module
            network.set_submodule(name, nn.Sequential(OrderedDict(first=first, second=second)))
    return network


if __name__ == "__main__":
    main()
