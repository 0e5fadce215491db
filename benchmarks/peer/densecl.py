"""LightlySSL's DenseCL, put together from its public parts as its documentation does.

Runs in an environment of its own (requirements.txt). throughput.py has it run for a number of steps and times it.
learning.py has it run for a number of steps or minutes and judges what it has learned. Prints one line of JSON. Queries
and keys both come from the query network, as in the example, because that is what its users run.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import time

import torch
import torchvision
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models import utils
from lightly.models.modules import DenseCLProjectionHead
from lightly.transforms import DenseCLTransform
from torch import Tensor, nn


class DenseCL(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        network = getattr(torchvision.models, name)()
        width = network.fc.in_features
        self.backbone = nn.Sequential(*list(network.children())[:-2])
        self.global_head = DenseCLProjectionHead(width, width, 128)
        self.local_head = DenseCLProjectionHead(width, width, 128)
        self.momentum = nn.ModuleList(
            copy.deepcopy(part) for part in (self.backbone, self.global_head, self.local_head)
        )
        for part in self.momentum:
            utils.deactivate_requires_grad(part)

    def parts(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.backbone, self.global_head, self.local_head

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.backbone(pixels)
        cells = features.flatten(start_dim=2).permute(0, 2, 1)
        return cells, self.global_head(features.mean(dim=(2, 3))), self.local_head(cells)

    @torch.no_grad()
    def forward_momentum(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self(pixels)  # as the example has it: the momentum encoder is updated and never used


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--queue-length", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, default=0.06, help="of SGD; constant, as in the example")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--warm-up", type=int, default=0, help="steps before the clock starts")
    lengths = parser.add_mutually_exclusive_group(required=True)
    lengths.add_argument("--steps", type=int)
    lengths.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="a file for the backbone's weights, named as torchvision names them")
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    dataset = LightlyDataset(options.data, transform=DenseCLTransform(input_size=options.image_size))
    loader = torch.utils.data.DataLoader(
        dataset, options.batch_size, shuffle=True, drop_last=True, num_workers=options.workers
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = DenseCL(options.backbone).to(device)
    losses = [NTXentLoss(memory_bank_size=(options.queue_length, 128)).to(device) for _ in range(2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=options.learning_rate, momentum=0.9, weight_decay=1e-4)

    done, start = 0, 0.0
    while not finished(options, done, start):
        for (query_view, key_view), *_ in loader:
            if done == options.warm_up:
                start = now()
            for part, average in zip(model.parts(), model.momentum, strict=True):
                utils.update_momentum(part, average, 0.999)
            with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16"):
                query_cells, query_global, query_local = model(query_view.to(device))
                key_cells, key_global, key_local = model.forward_momentum(key_view.to(device))
            matched = utils.select_most_similar(query_cells, key_cells, key_local).flatten(end_dim=1)
            local = losses[1](query_local.flatten(end_dim=1).float(), matched.float())
            loss = 0.5 * losses[0](query_global.float(), key_global.float()) + 0.5 * local
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if finished(options, done, start):
                break
    seconds = now() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    if options.save:
        stem = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        weights = {
            ".".join((stem[int(name.split(".")[0])], *name.split(".")[1:])): value.cpu()
            for name, value in model.backbone.state_dict().items()
        }
        torch.save(weights, options.save)
    images = (done - options.warm_up) * options.batch_size
    print(json.dumps({"steps": done, "images_per_second": images / seconds, "peak_mib": peak / 2**20}))


def finished(options: argparse.Namespace, done: int, start: float) -> bool:
    if options.steps is not None:
        return done == options.warm_up + options.steps
    return done > options.warm_up and now() - start >= 60 * options.minutes


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
