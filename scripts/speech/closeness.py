"""How close each engine's integer speech network stays to the float one: a checkpoint on a split of recordings.

Every engine calibrates on the same recordings of another split. intq computes from int16 samples, its peers from the
float front end's features. Against the transcripts: word and character error rates of greedy decoding, except for the
networks that packages ship, whose labels are no letters. Against the float network: the error rate of the labels that
it writes (of phonemes, if they are such), the share of frames with the same best label, and the scores' signal to
quantization noise.

Each result is written to standard error as it comes. On standard output a table, with --markdown the README's, and with
--json a list of {"model", "engine", "settings", "examples", "hours", "metrics": {"wer", "cer", "labels"}, "agreement",
"sqnr_db"}; wer and cer are there where there are transcripts, labels where the network writes any.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import tables
import torch
from opponents import Predict, peers

import intq
from intq.console import err, stdout_to_stderr, step
from intq.errors import IntqError
from intq.speech import audio, domain
from intq.speech import data as utterances_of
from intq.speech.checkpoint import Checkpoint
from intq.speech.data import Utterance
from intq.speech.decode import best_labels, greedy
from intq.speech.metrics import error_rates, wer
from intq.speech.packages import PACKAGED
from intq.speech.reader import Reader
from intq.vision.metrics import agreement, sqnr_db

ENGINES = ("intq", "openvino", "onnxruntime")


@dataclass(frozen=True)
class Subject:
    """A checkpoint, the utterances it is judged on and those to calibrate on, None for none."""

    checkpoint: Checkpoint
    utterances: Sequence[Utterance]
    calibration: str | None
    threads: int

    @cached_property
    def reader(self) -> Reader:
        return domain.reader(self.checkpoint, domain.metadata(self.checkpoint))

    def scores(self, predict: Predict, advance: Callable[[int, int], None]) -> list[np.ndarray]:
        """Each utterance's real scores (frames, labels); one that is too long to be run at once is run in pieces."""
        found, reader = [], self.reader
        for done, each in enumerate(self.utterances, start=1):
            place = (each.path, reader.rate, reader.longest, each.offset, each.duration, reader.shortest)
            parts = [np.atleast_2d(predict(piece[None])[0]) for piece in audio.pieces(*place)]
            found.append(np.concatenate(parts))
            advance(done, len(self.utterances))
        return found


def subject(source: str, data: str, calibration: str | None, limit: int | None, threads: int) -> Subject:
    """The checkpoint with the utterances of `data`, at most `limit` of them."""
    checkpoint = domain.load(source)
    found = (utterances_of.utterances if spells(checkpoint) else utterances_of.recordings)(data)
    return Subject(checkpoint, utterances_of.sample(found, limit) if limit else found, calibration, threads)


def spells(checkpoint: Checkpoint) -> bool:
    """Whether the labels are transcripts' letters."""
    return checkpoint.head == "ctc" and checkpoint.name not in PACKAGED


def float_network(this: Subject) -> Predict:
    network = domain.network(this.checkpoint)
    return lambda samples: network(samples, _lengths(samples))


def quantize_intq(this: Subject, samples: int, **options) -> Predict:
    """The network of `intq quantize CHECKPOINT --data SPLIT --samples N`, compiled."""
    graph = domain.prepare(this.checkpoint, this.calibration, samples=samples, seed=0, **options).quantize()
    network, scale = intq.compile(graph, threads=this.threads), graph.values[graph.outputs[0]].scale
    return lambda samples: scale * network(samples, _lengths(samples))


def _lengths(samples: np.ndarray) -> np.ndarray:
    return np.full(len(samples), samples.shape[1], np.int32)


def compare(
    this: Subject, engines: Sequence[str], samples: int, zero_shot: bool, widths: Sequence[str] = ()
) -> list[dict]:
    """A row for each engine and settings, the float network's first. ``widths``: as --widths has them."""
    name = this.checkpoint.name
    with step(f"{name}: float32") as advance:
        reference = this.scores(float_network(this), advance)
    rows = [judge(this, "torch", "float32", reference, reference)]
    contestants, kinds = {}, {"calibrated": {}} if this.calibration else {}
    if zero_shot:
        kinds["zero-shot"] = {"zero_shot": True}
    for kind, options in kinds.items() if "intq" in engines else ():
        contestants["intq", kind] = partial(quantize_intq, this, samples, **options)
        for width in widths:
            bits, weight_bits = ({"*": int(number)} for number in width.split(","))
            chosen = options | {"bits": bits, "weight_bits": weight_bits}
            contestants["intq", f"{kind}, {width}"] = partial(quantize_intq, this, samples, **chosen)
    with tempfile.TemporaryDirectory() as folder:
        if set(engines) - {"intq"}:
            with stdout_to_stderr():
                recordings = domain.calibration(this.checkpoint, this.calibration, samples, seed=0)
                contestants |= peers(this.checkpoint.model, recordings, Path(folder))
        for (engine, settings), quantize in contestants.items():
            if engine not in engines:
                continue
            with step(f"{name}: {engine}, {settings}") as advance, stdout_to_stderr():
                scores = this.scores(quantize(), advance)
            rows.append(judge(this, engine, settings, scores, reference))
    return rows


def judge(this: Subject, engine: str, settings: str, scores: list[np.ndarray], reference: list[np.ndarray]) -> dict:
    """The row of an engine whose scores are these, the float network's being the reference."""
    metrics: dict[str, float] = {}
    if spells(this.checkpoint):
        texts = [greedy(each, this.reader.labels) for each in scores]
        metrics |= error_rates(texts, [each.text for each in this.utterances])
    if this.checkpoint.head == "ctc":
        blank = this.reader.labels.blank
        found, truth = (
            [" ".join(map(str, best_labels(each, blank))) for each in given] for given in (scores, reference)
        )
        metrics["labels"] = wer(found, truth)
    every, of_float = np.concatenate(scores), np.concatenate(reference)
    row = {
        "model": this.checkpoint.name,
        "engine": engine,
        "settings": settings,
        "examples": len(this.utterances),
        "hours": round(sum(each.duration for each in this.utterances) / 3600, 3),
        "metrics": {name: round(value, 5) for name, value in metrics.items()},
        "agreement": round(agreement(every, of_float), 5),
        "sqnr_db": None if engine == "torch" else round(sqnr_db(every, of_float), 2),
    }
    err.print("  ".join(cells(row)), soft_wrap=True)
    return row


HEADER = ("model", "engine", "settings", "WER", "CER", "labels unlike float's", "same best label", "scores SQNR")


def cells(row: dict) -> list[str]:
    """One row for people."""
    rates = (row["metrics"].get(name) for name in ("wer", "cer", "labels"))
    noise = "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB"
    shares = ("" if rate is None else f"{100 * rate:.2f} %" for rate in (*rates, row["agreement"]))
    return [row["model"], row["engine"], row["settings"], *shares, noise]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="accuracy_speech", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a .nemo checkpoint, or weights that a package ships: hama, marblenet")
    parser.add_argument("data", help="what is judged on: LibriSpeech's layout, a manifest, or any recordings")
    parser.add_argument("--calibration", metavar="DATA", help="what calibrates: another split")
    parser.add_argument("--zero-shot", action="store_true", help="also intq without any data")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["intq"], help="default: intq alone")
    widths = ("8,8", "16,8", "16,16")
    about = "also with so many bits of all layers' activations and weights"
    parser.add_argument("--widths", nargs="+", choices=widths, default=[], help=about)
    parser.add_argument("--samples", type=int, default=64, help="recordings that calibrate (default 64)")
    parser.add_argument("--limit", type=int, help="compare on so many utterances (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    tables.add_formats(parser)
    options = parser.parse_args(arguments)
    if not (options.calibration or (options.zero_shot and options.engines == ["intq"])):
        parser.error("--calibration is missing: only `--zero-shot --engines intq` needs no data")
    torch.set_num_threads(options.threads)
    try:
        this = subject(options.model, options.data, options.calibration, options.limit, options.threads)
        rows = compare(this, options.engines, options.samples, options.zero_shot, options.widths)
    except IntqError as error:
        err.print(f"accuracy_speech: {error}", markup=False, soft_wrap=True)
        return 2
    tables.show(rows, HEADER, cells, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
