"""Mixed precision on Fashion-MNIST: what integers of 8 and 4 bits lose against float, before and after fine-tuning.

The networks are those of scripts/train_fashion. Differences are in points of accuracy on the 10,000 test images; the
last column is what each may lose at most. "+DIST" is fine-tuned with distillation from the float network. With
--compare: the plans of the integer program beside those of the other methods, at the same budget, each before and after
the same fine-tuning; random plans are a single draw, and evolution judges each candidate by its accuracy on 2,000
training images, rounded to nearest.

Every result is kept in the cache ($INTQ_CACHE/mixed) by what was asked: a table that was stopped goes on. Each is
written to standard error as it comes; on standard output a table, with --markdown the README's, with --json a list of
{"network", "row", "seed", "examples", "float", "top1", "difference", "bops", "minutes", "allowed"}, bops being the
share of W8A8's, or with --compare {"network", "method", "sensitivity", "seed", "examples", "float", "bops",
"untrained", "tuned", "search_minutes", "tuning_minutes", "evaluations"}.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean

import tables
import torch
from subject import Plan, Subject
from train import EPOCHS

from intq.baselines import METHODS
from intq.console import err, print_json
from intq.errors import IntqError
from intq.finetune import Recipe
from intq.searching import SENSITIVITIES

# Each row: the bits everywhere or None for the searched plan, whether it is trained, and the points that it may lose.
ROWS = {
    "W8A8": ((8, 8), False, 0.1),
    "W4A8": ((4, 8), False, 1.0),
    "mixed": (None, False, None),
    "mixed+DIST": (None, True, 0.3),
    "W4A4": ((4, 4), False, None),
    "W4A4+DIST": ((4, 4), True, 0.8),
}
COMPARED = ("ilp", "uniform", "greedy", "random", "evolution")
HEADER = ("network", "bits", "top-1", "difference (points)", "BOPS of W8A8", "minutes", "allowed")
COMPARISON = ("network", "method", "seed", "BOPS of W8A8", "untrained", "tuned", "search (min)", "evaluations")


def table(subject: Subject, rows: Sequence[str], recipe: Recipe, options: argparse.Namespace) -> Iterator[dict]:
    """A row for each precision."""
    real = subject.real()
    for row in rows:
        bits, trained, allowed = ROWS[row]
        plan, searched = (subject.uniform(bits), 0.0) if bits else searched_plan(subject, options.budget)
        score = subject.score(plan, recipe if trained else None)
        yield {
            "network": subject.name,
            "row": row,
            "seed": subject.seed,
            "examples": len(subject.test),
            "float": real,
            "top1": score["top1"],
            "difference": points(score["top1"], real),
            "bops": subject.bops(plan),
            "minutes": round(searched + score["minutes"], 2),
            "allowed": allowed,
        }


def searched_plan(subject: Subject, budget: str) -> tuple[Plan, float]:
    """The integer program's plan, and the minutes that it took."""
    found = subject.found("ilp", budget)
    return found["plan"], found["minutes"]


def comparison(subject: Subject, methods: Sequence[str], recipe: Recipe, options: argparse.Namespace) -> Iterator[dict]:
    """A row for each method of search."""
    real = subject.real()
    of_ilp = [replace(subject, sensitivity=each) for each in options.sensitivity]
    for method, judge in [(m, each) for m in methods for each in (of_ilp if m == "ilp" else [subject])]:
        found = judge.found(method, options.budget, options.trials)
        untrained, tuned = (subject.score(found["plan"], trained) for trained in (None, recipe))
        yield {
            "network": subject.name,
            "method": method,
            "sensitivity": judge.sensitivity if method == "ilp" else None,
            "seed": subject.seed,
            "examples": len(subject.test),
            "float": real,
            "bops": subject.bops(found["plan"]),
            "untrained": points(untrained["top1"], real),
            "tuned": points(tuned["top1"], real),
            "search_minutes": round(found["minutes"], 2),
            "tuning_minutes": round(tuned["minutes"], 2),
            "evaluations": found["evaluations"],
        }


def points(share: float, real: float) -> float:
    return round(100 * (share - real), 4)


def cells(rows: Sequence[dict]) -> list[str]:
    """A row of the table for people: the mean over seeds, and every seed's difference."""
    each = ", ".join(f"{row['difference']:+.2f}" for row in rows)
    mean = f"{fmean(row['difference'] for row in rows):+.2f}" + (f" ({each})" if len(rows) > 1 else "")
    allowed = rows[0]["allowed"]
    return [
        rows[0]["network"],
        rows[0]["row"],
        f"{100 * fmean(row['top1'] for row in rows):.2f} %",
        mean,
        f"{100 * rows[0]['bops']:.1f} %",
        f"{fmean(row['minutes'] for row in rows):.1f}",
        "" if allowed is None else f"-{allowed:g}",
    ]


def compared_cells(row: dict) -> list[str]:
    method = ", ".join(filter(None, (row["method"], row["sensitivity"])))
    return [
        *(row["network"], method, str(row["seed"]), f"{100 * row['bops']:.1f} %"),
        *(f"{row[name]:+.2f}" for name in ("untrained", "tuned")),
        *(f"{row['search_minutes']:.2f}", str(row["evaluations"])),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="accuracy_mixed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=EPOCHS, default=list(EPOCHS), help="default: all")
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="default: all")
    add("--compare", action="store_true", help="the methods of search instead of the precisions")
    add("--methods", nargs="+", choices=METHODS, default=list(COMPARED), help=f"default: {' '.join(COMPARED)}")
    add("--seeds", nargs="+", type=int, default=[0], help="of calibration, search and training (default 0)")
    add("--epochs", type=float, default=1.0, help="of fine-tuning (default 1)")
    add("--lr", type=float, default=1e-3, help="of fine-tuning (default 0.001)")
    add("--distill", type=float, default=0.5, help="the float network's share of the loss (default 0.5)")
    add("--steps", default="none", help="what else is learned: none, pact or lsq (default none)")
    add("--rounding", default="learned", help="of fewer than 8 bits (default learned)")
    add("--budget", default="bops=0.5x", help="of the mixed networks (default bops=0.5x)")
    add(
        "--sensitivity",
        choices=SENSITIVITIES,
        nargs="+",
        default=["loss", "hessian"],
        help="of layers: the first everywhere, the others for ilp with --compare (default loss hessian)",
    )
    add("--trials", type=int, default=100, help="candidates that evolution judges (default 100)")
    add("--samples", type=int, default=512, help="images that calibrate (default 512)")
    add("--limit", type=int, help="evaluate on so many test images (default: all)")
    add("--threads", type=int, default=2)
    tables.add_formats(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    how = {"epochs": options.epochs, "lr": options.lr, "distill": options.distill, "steps": options.steps}
    of_subject = partial(comparison, methods=options.methods) if options.compare else partial(table, rows=options.rows)
    found = []
    try:
        for name in options.networks:
            for seed in options.seeds:
                subject = Subject(name, options.samples, seed, options.limit, options.sensitivity[0], options.rounding)
                for row in of_subject(subject, recipe=Recipe(seed=seed, **how), options=options):
                    found.append(row)
                    err.print("  ".join(compared_cells(row) if options.compare else cells([row])), soft_wrap=True)
    except IntqError as error:
        err.print(f"accuracy_mixed: {error}", markup=False, soft_wrap=True)
        return 2
    if options.json:
        print_json(found)
    elif options.compare:
        tables.show(found, COMPARISON, compared_cells, options)
    else:
        groups: dict[tuple, list[dict]] = {}
        for row in found:
            groups.setdefault((row["network"], row["row"]), []).append(row)
        tables.show(list(groups.values()), HEADER, cells, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
