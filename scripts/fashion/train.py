"""Train small networks on Fashion-MNIST in float, quantize them to 8 bits, and compare both on the 10,000 test images.

The networks are plain float ones, trained without any knowledge of quantization, in a few minutes each on two cores.
Their state dicts are kept in the cache and trained once; `intq quantize` takes them too.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import nn

from intq.assets import cache_folder
from intq.backends import torch as integers
from intq.console import err, out, print_json, step
from intq.errors import IntqError
from intq.vision import domain
from intq.vision.assets import asset
from intq.vision.checkpoint import Checkpoint, load
from intq.vision.data import open_dataset
from intq.vision.evaluate import evaluate
from intq.vision.formats import read_idx
from intq.vision.models import architecture

EPOCHS = {"small_resnet": 4, "small_mobilenet_v2": 4, "small_squeezenext": 4, "small_inception": 4}
BATCH = 128


def train(name: str, data: Path, epochs: int, seed: int) -> nn.Module:
    """The architecture called `name`, trained on the 60,000 images: AdamW, one cycle of the learning rate."""
    torch.manual_seed(seed)
    known = architecture(name)
    model = known.build(known.classes).train().to(memory_format=torch.channels_last)
    pixels = known.preprocess.normalize(read_idx(data / "train-images-idx3-ubyte.gz")[..., None])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    labels = torch.from_numpy(read_idx(data / "train-labels-idx1-ubyte.gz").astype(np.int64))
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    done = 0
    with step(f"train {name}") as advance:
        for epoch in range(epochs):
            order = torch.randperm(len(images))
            for start in range(0, len(images) - BATCH + 1, BATCH):
                chosen = order[start : start + BATCH]
                loss = loss_of(model(_augment(images[chosen])), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                done += 1
                advance(done, steps)
            err.print(f"{name}: epoch {epoch + 1} of {epochs}, last loss {loss.item():.3f}")
    return model.eval()


def _augment(images: torch.Tensor) -> torch.Tensor:
    """Mirror half of the batch and shift all of it by up to two pixels; clothes stay clothes."""
    mirrored = torch.rand(len(images)) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    height, width = images.shape[2:]
    top, left = torch.randint(0, 5, (2,)).tolist()
    images = nn.functional.pad(images, (2, 2, 2, 2), value=images.min().item())
    return images[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)


def checkpoint_of(name: str, data: Path, folder: Path, epochs: int, seed: int, retrain: bool) -> Checkpoint:
    """The trained network from the cache, after training it if it is not there."""
    path = folder / f"{name}-{epochs}-epochs-seed-{seed}.pth"
    if retrain or not path.is_file():
        model = train(name, data, epochs, seed)
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.save({key: value.contiguous() for key, value in model.state_dict().items()}, part)
        part.replace(path)
    err.print(f"{name}: {path}", soft_wrap=True)
    return load(path)


def compare(name: str, checkpoint: Checkpoint, data: Path, samples: int, seed: int) -> dict:
    """{"model", "examples", "float", "int8", "difference"}: shares of right answers, the difference in points."""
    test = open_dataset(data, checkpoint.preprocess, checkpoint.labels)
    with step(f"quantize {name}"):
        graph = domain.prepare(checkpoint, data, samples=samples, seed=seed).quantize()
    network = integers.prepare(graph)
    with step(f"evaluate {name}, float") as advance:
        real = evaluate(domain.network(checkpoint), test, 250, advance)
    with step(f"evaluate {name}, int8") as advance:
        whole = evaluate(lambda pixels: network(torch.from_numpy(pixels))[0].numpy(), test, 250, advance)
    before, after = real["metrics"]["top1"], whole["metrics"]["top1"]
    return {
        "model": name,
        "examples": whole["examples"],
        "float": before,
        "int8": after,
        "difference": round(100 * (after - before), 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="train_fashion", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=EPOCHS, default=list(EPOCHS), help="which networks")
    parser.add_argument("--epochs", type=int, help="passes over the training images (default 4)")
    parser.add_argument("--samples", type=int, default=512, help="images that calibrate (default 512)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--retrain", action="store_true", help="train even when a trained network is in the cache")
    parser.add_argument("--cache", type=Path, help="folder of the trained networks (default in $INTQ_CACHE)")
    parser.add_argument("--json", action="store_true", help="print one JSON value instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.cache or cache_folder() / "fashion-models"
    try:
        data = asset("fashion-mnist")
        rows = []
        for name in options.models:
            epochs = options.epochs or EPOCHS[name]
            checkpoint = checkpoint_of(name, data, folder, epochs, options.seed, options.retrain)
            rows.append(compare(name, checkpoint, data, options.samples, options.seed))
    except IntqError as error:
        print(f"train_fashion: {error}", file=sys.stderr)
        return 2
    if options.json:
        print_json(rows)
        return 0
    table = Table("model", "images", "float", "int8", "difference (points)")
    for row in rows:
        table.add_row(
            *(row["model"], str(row["examples"])),
            *(f"{100 * row[kind]:.2f} %" for kind in ("float", "int8")),
            f"{row['difference']:+.2f}",
        )
    out.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
