"""Train a small QuartzNet with CTC on the made corpus, on one core, and keep it in the cache as a .nemo checkpoint.

The network is a plain float one that knows nothing of quantization: QuartzNet's blocks (Kriman et al., 2020), fewer and
narrower, on 64 mel bands, with an output every 20 ms and characters as labels. The word error rates are those of greedy
decoding without a language model, of sentences that training never had: on test by other voices of the synthesizer that
most of training is, on test-other by a voice unlike those.

On standard output a table, with --json a list of {"model", "data", "split", "seconds", "task", "examples", "hours",
"metrics", "notices"}; seconds: of training, 0 when the model was in the cache.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from make import HOURS, corpus
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from intq.assets import cache_folder
from intq.console import err, out, print_json, step
from intq.errors import IntqError
from intq.frontend import FrontEnd, LogMel
from intq.speech import audio, domain, nemo
from intq.speech.checkpoint import Checkpoint
from intq.speech.corpus import OTHER
from intq.speech.data import Utterance, librispeech
from intq.speech.decode import greedy
from intq.speech.labels import characters, normalized
from intq.speech.metrics import error_rates
from intq.speech.models import LETTERS, Architecture
from intq.speech.models.convolutional import BlockSettings
from intq.speech.models.network import SpeechModel

NAME = "quartznet-small"
TESTS = ("test", OTHER)
RATE = 16000
FRONT = FrontEnd(sample_rate=RATE, window=320, hop=160, fft=512, bands=64)
FILTERS, KERNELS, REPEAT, LAST = 256, (11, 13, 15, 17, 19), 2, 512
BLOCKS = (
    BlockSettings(FILTERS, 11, stride=2, separable=True),
    *(BlockSettings(FILTERS, kernel, REPEAT, residual=True, separable=True) for kernel in KERNELS),
    BlockSettings(FILTERS, 25, separable=True),
    BlockSettings(LAST, 1),
)
NETWORK = Architecture(NAME, FRONT, BLOCKS, "ctc", LETTERS)
BATCH = 6000  # frames of 10 ms: a minute, some 20 phrases
STRETCH, WARP = 0.12, 0.1  # by how much the time and the frequency axis of a batch are drawn out or pressed
MASKS = ((2, 10), (3, 12))  # how many masks of up to so many bands, and of up to so many frames (Park et al., 2019)
EPOCHS, RATE_PEAK, DECAY = 16, 3e-3, 1e-2


# ---- features ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """The utterances of a split as training takes them: features float16 (bands, t) and labels int64 (m,) of each."""

    features: list[Tensor]
    labels: list[Tensor]
    texts: list[str]


def hear(given: Sequence[Utterance], advance: Callable[[int, int], None]) -> Heard:
    """The front end's features of all utterances, computed once."""
    front = LogMel(FRONT)
    numbers = {letter: index for index, letter in enumerate(LETTERS)}
    features, labels, texts = [], [], []
    for done, each in enumerate(given, start=1):
        samples, _ = audio.read(each.path, RATE, each.offset, each.duration)
        with torch.inference_mode():
            features.append(front(torch.from_numpy(samples)[None] / 32768.0)[0].to(torch.float16).clone())
        texts.append(normalized(each.text))
        labels.append(torch.tensor([numbers[letter] for letter in texts[-1] if letter in numbers]))
        advance(done, len(given))
    return Heard(features, labels, texts)


def batches(heard: Heard, generator: np.random.Generator | None) -> Iterator[list[int]]:
    """The utterances' indices in batches of similar length, up to `BATCH` frames; in random order for training."""
    lengths = np.array([feature.shape[-1] for feature in heard.features])
    # Not the same neighbours in each epoch.
    keys = lengths if generator is None else lengths * generator.uniform(0.95, 1.05, len(lengths))
    found, batch = [], []
    for index in np.argsort(keys, kind="stable").tolist():
        if batch and (len(batch) + 1) * max(lengths[[*batch, index]]) > BATCH:
            found.append(batch)
            batch = []
        batch.append(index)
    found.append(batch)
    if generator is not None:
        generator.shuffle(found)
    yield from found


def padded(heard: Heard, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Features float32 (n, bands, t) of a batch and how many frames (n,) of each row are its own."""
    chosen = [heard.features[i] for i in batch]
    frames = torch.tensor([feature.shape[-1] for feature in chosen])
    x = torch.zeros(len(chosen), chosen[0].shape[0], int(frames.max()))
    for row, feature in zip(x, chosen, strict=True):
        row[:, : feature.shape[-1]] = feature
    return x, frames


def augment(x: Tensor, frames: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A batch spoken faster or slower, by a longer or shorter throat, with bands and frames masked.

    Stretching the frequency axis is vocal tract length perturbation (Jaitly and Hinton, 2013); the masks are
    SpecAugment's (Park et al., 2019), of 0: the features' mean.
    """
    bands = x.shape[1]
    time_factor, band_factor = (1 + generator.uniform(-limit, limit) for limit in (STRETCH, WARP))
    size = (round(bands * band_factor), round(x.shape[2] * time_factor))
    x = functional.interpolate(x[:, None], size, mode="bilinear", align_corners=False)[:, 0, :bands]
    x = functional.pad(x, (0, 0, 0, bands - x.shape[1]))
    frames = (frames * (size[1] / int(frames.max()))).floor().to(torch.int64)
    for row, length in zip(x, frames.tolist(), strict=True):
        for axis, (count, widest), extent in zip((0, 1), MASKS, (bands, length), strict=True):
            for width in generator.integers(0, min(widest, extent) + 1, count).tolist():
                row.narrow(axis, int(generator.integers(0, extent - width + 1)), width).zero_()
    return x, frames


# ---- training ----------------------------------------------------------------------------------------------------


def fast(model: nn.Module) -> None:
    """Run 1-D convolutions and BatchNorms as 2-D ones whose channels lie together: three times as fast on a CPU.

    The parameters and the function stay the same.
    """

    def convolve(module: nn.Conv1d, x: Tensor) -> Tensor:
        x = x[:, :, None].contiguous(memory_format=torch.channels_last)
        weight = module.weight[:, :, None]
        stride, padding, dilation = ((1, module.stride[0]), (0, module.padding[0]), (1, module.dilation[0]))
        return functional.conv2d(x, weight, module.bias, stride, padding, dilation, module.groups).squeeze(2)

    def normalise(module: nn.BatchNorm1d, x: Tensor) -> Tensor:
        statistics = module.running_mean, module.running_var, module.weight, module.bias
        x = functional.batch_norm(x[:, :, None], *statistics, module.training, module.momentum, module.eps)
        return x.squeeze(2)

    for module in model.modules():
        if isinstance(module, nn.Conv1d):
            module.forward = partial(convolve, module)
        elif isinstance(module, nn.BatchNorm1d):
            module.forward = partial(normalise, module)


def slow(model: nn.Module) -> None:
    """Undo `fast`."""
    for module in model.modules():
        module.__dict__.pop("forward", None)


def train(heard: Heard, dev: Heard, epochs: int, seed: int, advance: Callable) -> SpeechModel:
    """The trained network: CTC, AdamW, one cycle of the learning rate; products in bfloat16, weights float32."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    network = NETWORK.build().train()
    encoder, head = network.encoder, network.decoder
    fast(network)
    plan = [list(batches(heard, generator)) for _ in range(epochs)]
    total = sum(map(len, plan))
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE_PEAK, total, pct_start=0.1)
    loss_of = nn.CTCLoss(blank=len(LETTERS), zero_infinity=True)
    done, started = 0, time.monotonic()
    for epoch, order in enumerate(plan, start=1):
        losses = []
        for batch in order:
            x, frames = augment(*padded(heard, batch), generator)
            labels = [heard.labels[i] for i in batch]
            with torch.autocast("cpu", torch.bfloat16):
                logits = head(encoder(x, frames))
            logs = logits.float().log_softmax(-1).transpose(0, 1)
            lengths = torch.tensor([len(label) for label in labels])
            loss = loss_of(logs, torch.cat(labels), encoder.frames(frames), lengths)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            done += 1
            advance(done, total)
        rates = judge(encoder, head, dev)
        err.print(
            f"epoch {epoch} of {epochs}: loss {np.mean(losses):.3f}, dev WER {100 * rates['wer']:.2f} %, "
            f"CER {100 * rates['cer']:.2f} %, {time.monotonic() - started:.0f} s"
        )
    slow(network)
    return network.eval()


def judge(encoder: nn.Module, head: nn.Module, heard: Heard) -> dict[str, float]:
    """{"wer", "cer"} on features, as the network stands in the middle of training."""
    labels, found = characters(LETTERS), [""] * len(heard.texts)
    encoder.eval(), head.eval()
    with torch.inference_mode():
        for batch in batches(heard, None):
            x, frames = padded(heard, batch)
            logits = head(encoder(x, frames))
            for index, row, length in zip(batch, logits, encoder.frames(frames).tolist(), strict=True):
                found[index] = greedy(row[:length].numpy(), labels)
    encoder.train(), head.train()
    return error_rates(found, heard.texts)


def model_of(hours: float, epochs: int, seed: int, retrain: bool) -> tuple[Path, Path, float]:
    """(the checkpoint's file, the corpus, the seconds it took), after training it if it is not there."""
    data = corpus(hours, seed)
    path = cache_folder() / "speech-models" / f"{NAME}-{hours:g}-hours-{epochs}-epochs-seed-{seed}.nemo"
    if path.is_file() and not retrain:
        return path, data, 0.0
    started = time.monotonic()
    heard = {}
    for split in ("train", "dev"):
        with step(f"features of {split}") as advance:
            heard[split] = hear(librispeech(data / split), advance)
    with step(f"train {NAME}") as advance:
        model = train(heard["train"], heard["dev"], epochs, seed, advance)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".train-") as temporary:
        written = Path(temporary, path.name)
        nemo.save(Checkpoint(model, NAME, "", FRONT, LETTERS, NETWORK.head), written)
        written.rename(path)  # the cache never shows a half-written model
    return path, data, time.monotonic() - started


def report(path: Path, data: Path) -> list[dict]:
    """What the checkpoint, as it is read back, makes of the two test splits."""
    found = domain.load(str(path))
    metadata = domain.metadata(found)
    network, reader = domain.network(found), domain.reader(found, metadata)
    rows = []
    for split in TESTS:
        with step(f"evaluate {split}") as advance:
            given = {"limit": None, "batch": 16, "progress": advance}
            rows.append({"split": split, **domain.evaluate(network, reader, metadata, str(data / split), **given)})
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="train_speech", description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=HOURS, help=f"of training speech to make (default {HOURS:g})")
    parser.add_argument(
        "--epochs", type=int, default=EPOCHS, help=f"passes over the training speech (default {EPOCHS})"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--retrain", action="store_true", help="train even when a trained model is in the cache")
    parser.add_argument("--json", action="store_true", help="print one JSON value instead of a table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        path, data, seconds = model_of(options.hours, options.epochs, options.seed, options.retrain)
        if seconds:
            err.print(f"{path} ({seconds:.0f} s)", soft_wrap=True)
        known = {"model": str(path), "data": str(data), "seconds": round(seconds, 1)}
        rows = [known | row for row in report(path, data)]
    except IntqError as error:
        print(f"train_speech: {error}", file=sys.stderr)
        return 2
    if options.json:
        print_json(rows)
        return 0
    table = Table("model", "split", "utterances", "hours", "WER", "CER")
    for row in rows:
        rates = (f"{100 * row['metrics'][name]:.2f} %" for name in ("wer", "cer"))
        table.add_row(path.name, row["split"], str(row["examples"]), f"{row['hours']:.2f}", *rates)
    out.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
