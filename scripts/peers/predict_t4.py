"""The least time of ResNet-18 and -50, batch 8, on a T4 by the GPU's published limits and our kernels' tiles, beside
the times that HAWQ-V3 published for its kernels there (tests/data/hawq_v3_t4.json; the first and the last layer are
not among them). Nothing is measured here: a prediction above a published time would show that the model is wrong.

With --json a list of {"network", "layer", "bits", "predicted_ms", "bound", "filled", "published_ms"}.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import tables

from intq.bench import prediction
from intq.networks import integer_network, opened

PUBLISHED = Path(__file__).resolve().parents[2] / "tests" / "data" / "hawq_v3_t4.json"
HEADER = ("network", "layer", "bits", "predicted, ms", "bound by", "tiles filled", "HAWQ-V3, ms", "ratio")
BATCH = 8
NARROW = {8: {}, 4: {"bits": {"*": 4}, "weight_bits": {"*": 4}}}


def module_of(name: str) -> str:
    """The name in our network of HAWQ-V3's "stage2.unit1.convbn2"."""
    stage, unit, conv = re.fullmatch(r"stage(\d)\.unit(\d)\.(\w+)", name).groups()
    last = "downsample.0" if conv == "identity_convbn" else conv.replace("convbn", "conv")
    return f"layer{stage}.{int(unit) - 1}.{last}"


def compared(network: str, bits: int) -> list[dict]:
    domain, checkpoint = opened(network, 0, random=True)
    graph = integer_network(domain, checkpoint, None, 0, random=True, **NARROW[bits])
    layers = {layer["name"]: layer for layer in prediction(graph, "nvidia/nvidia-t4", BATCH)["layers"]}
    rows = []
    for published in json.loads(PUBLISHED.read_text())["networks"][network]["layers"]:
        layer = layers[module_of(published["name"])]
        rows.append(
            {
                "network": network,
                "layer": layer["name"],
                "bits": bits,
                "predicted_ms": layer["ms"],
                "bound": layer["bound"],
                "filled": layer["filled"],
                "published_ms": published[f"latency_int{bits}"],
            }
        )
    return rows


def total(rows: list[dict]) -> dict:
    times = {key: sum(row[key] for row in rows) for key in ("predicted_ms", "published_ms")}
    return {**rows[0], "layer": f"all {len(rows)}", "bound": "", "filled": None, **times}


def cells(row: dict) -> list[str]:
    filled = "" if row["filled"] is None else f"{100 * row['filled']:.0f} %"
    times = f"{row['predicted_ms']:.4f}", row["bound"], filled, f"{row['published_ms']:.4f}"
    return [row["network"], row["layer"], str(row["bits"]), *times, f"{row['predicted_ms'] / row['published_ms']:.2f}"]


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog="predict_t4", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=("resnet18", "resnet50"), default=["resnet18", "resnet50"])
    parser.add_argument("--layers", action="store_true", help="every layer, not only all together")
    tables.add_formats(parser)
    options = parser.parse_args(arguments)
    groups = [compared(network, bits) for network in options.networks for bits in (8, 4)]
    rows = [row for group in groups for row in (group if options.layers or options.json else []) + [total(group)]]
    tables.show([row for group in groups for row in group] if options.json else rows, HEADER, cells, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
