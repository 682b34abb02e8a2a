"""Make a corpus of English speech in LibriSpeech's layout, in the cache: train, dev, test and test-other.

The speakers are synthesizers' voices, and one recorded; the phrases are of Jane Austen's novels. No speaker and no
phrase is in two of them. On standard output the folder, with --json {"folder", "splits": {name: {"utterances",
"speakers", "hours"}}}.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from intq.assets import cache_folder
from intq.console import err, out, print_json, step
from intq.errors import IntqError
from intq.speech import audio
from intq.speech.assets import fetch
from intq.speech.corpus import OTHER, SHARES, SOURCES, build
from intq.speech.data import librispeech

HOURS = 6.0


def corpus(hours: float = HOURS, seed: int = 0, jobs: int = 2) -> Path:
    """The corpus in the cache, made now if it is not there."""
    folder = cache_folder() / "speech-data" / f"made-{hours:g}-hours-seed-{seed}"
    if not folder.is_dir():
        for name in SOURCES:
            fetch(name)
        with step("make the corpus") as advance:
            build(folder, hours, seed, jobs, advance)
    return folder


def content(folder: Path) -> dict[str, dict[str, float]]:
    """{split: {"utterances", "speakers", "hours"}}."""
    found = {}
    for split in (*SHARES, OTHER):
        given = librispeech(folder / split)
        speakers = {each.path.parent.parent for each in given}
        hours = sum(each.duration for each in given) / 3600
        found[split] = {"utterances": len(given), "speakers": len(speakers), "hours": round(hours, 3)}
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make_speech", description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=HOURS, help=f"of training speech, about (default {HOURS:g})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2, help="synthesizers that run side by side")
    parser.add_argument("--json", action="store_true", help="print one JSON value instead of the folder")
    options = parser.parse_args(arguments)
    if not options.hours > 0:
        parser.error(f"--hours {options.hours:g}: expected more than 0")
    # a synthesizer's full scale, resampled, is a little more than that: nothing to report of each of thousands
    logging.getLogger(audio.__name__).setLevel(logging.ERROR)
    try:
        folder = corpus(options.hours, options.seed, options.jobs)
        splits = content(folder)
    except IntqError as error:
        print(f"make_speech: {error}", file=sys.stderr)
        return 2
    for split, numbers in splits.items():
        err.print(f"{split}: {', '.join(f'{value:g} {what}' for what, value in numbers.items())}")
    if options.json:
        print_json({"folder": str(folder), "splits": splits})
    else:
        out.print(str(folder), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
