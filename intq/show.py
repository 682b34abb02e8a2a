"""The answers of the commands for people: tables of the documented JSON values."""

from __future__ import annotations

from statistics import median
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from intq.budgets import spelled

CORRELATIONS = ("matthews", "pearson", "spearman")  # not shares of anything


def answers(rows: list[dict[str, Any]]) -> tuple:
    """`intq run`: what the network says to each input; of long ones both ends."""
    if "embedding" in rows[0]:
        return (_similarities(rows),)
    if "real_time_factor" in rows[0]:
        return tuple(line for row in rows for line in _heard(row))
    if "words" in rows[0]:
        return tuple(_words(row["words"]) for row in rows)
    table = Table(
        "input",
        Column("label" if "top" in rows[0] else "value", style="bold", no_wrap=True, max_width=40),
        Column("score", justify="right"),
        box=None,
        header_style="dim",
    )
    for item in rows:
        said = [(row["label"], row["score"]) for row in item["top"]] if "top" in item else [_real(item)]
        for rank, (name, score) in enumerate(said):
            table.add_row("" if rank else _input(item), escape(name), str(score), style="dim" if rank else None)
    return (table,)


def searched(value: dict[str, Any]) -> tuple:
    """`intq search`: what the plan costs beside W8A8, and which layers have which bits."""
    table = Table(*(Column(c, justify="right") for c in ("", "W8A8", "plan", "share")), box=None, header_style="dim")
    for name, cost in value["costs"].items():
        whole = value["w8a8"][name]
        limit = f" of {spelled(name, value['budgets'][name])}" if name in value["budgets"] else ""
        table.add_row(name, spelled(name, whole), spelled(name, cost) + limit, f"{100 * cost / whole:.1f} %")
    groups: dict[str, list[str]] = {}
    for layer, bits in value["layers"].items():
        groups.setdefault(f"W{bits['weight_bits']}A{bits['input_bits']}", []).append(layer)
    lines = [f"[b]{bits}[/] {escape(', '.join(names))}" for bits, names in sorted(groups.items(), reverse=True)]
    proven = "" if value["gap"] is None else f", proven within {100 * value['gap']:.2g} % of the best"
    tried = f", {value['evaluations']} networks evaluated" if value["evaluations"] else ""
    return (
        f"[b]{escape(value['model'])}[/]: {value['method']} in {value['search_seconds']:.2f} s{proven}{tried}; "
        f"sensitivity ({value['sensitivity']}) in {value['sensitivity_seconds']:.1f} s.",
        table,
        *lines,
        f"[dim]Next: intq quantize or finetune CHECKPOINT --plan {value['plan']}[/]",
    )


def training(value: dict[str, Any]) -> tuple:
    """`intq finetune`: what was measured after each epoch."""
    rows = value["history"]
    names = [name for name in rows[-1] if name not in ("step", "epoch", "loss")]
    table = Table(*(Column(name, justify="right") for name in ("epoch", "loss", *names)), box=None, header_style="dim")
    for row in rows:
        table.add_row(f"{row['epoch']:g}", f"{row['loss']:.4f}", *(_metric(name, row[name]) for name in names))
    artifact = value["artifact"]
    return (
        f"[b]{escape(value['model'])}[/] was trained as integers; what is measured last is what {artifact} computes.",
        table,
        f"[dim]Next: intq verify {artifact} | intq eval {artifact} | intq bench {artifact}[/]",
    )


def _metric(name: str, value: float) -> str:
    return f"{value:.4f}" if name in CORRELATIONS else f"{100 * value:.2f} %"


def _heard(row: dict[str, Any]) -> tuple:
    """A recording: what it says, and how long that took."""
    factor, notes = row["real_time_factor"], "".join(f"; {notice}" for notice in row["notices"])
    lines = [f"[dim]{escape(row['input'])}: {row['seconds']:.1f} s, real-time factor {factor:.4f}{escape(notes)}[/]"]
    if "text" in row:
        return (*lines, escape(row["text"]) or "[dim](nothing heard)[/]")
    if "top" in row:
        return (*lines, *(f"{escape(each['label'])} [dim]{each['score']}[/]" for each in row["top"]))
    spans = (f"{part['start']:8.2f} s to {part['end']:.2f} s  [b]{escape(part['label'])}[/]" for part in row["parts"])
    return (*lines, *spans)


def _real(item: dict[str, Any]) -> tuple[str, int]:
    return f"{item['value']:.4g}", item["score"]


def _input(item: dict[str, Any], most: int = 60) -> str:
    text = f"{item['input']} | {item['pair']}" if "pair" in item else item["input"]
    return escape(text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-most // 2 :]}")


def _words(words: list[dict[str, Any]]) -> Table:
    table = Table("word", Column("label", style="bold"), Column("score", justify="right"), box=None, header_style="dim")
    for row in words:
        table.add_row(escape(row["word"]), escape(row["label"]), str(row["score"]))
    return table


def _similarities(rows: list[dict[str, Any]]) -> Table:
    table = Table("input", Column("cosine with the first", justify="right", style="bold"), box=None, header_style="dim")
    for row in rows:
        close = (
            f"{row['similarity']:.4f}" if "similarity" in row else f"[dim]{len(row['embedding'])} integers: --json[/]"
        )
        table.add_row(_input(row), close)
    return table


def accuracy(value: dict[str, Any], model: str, arithmetic: str) -> tuple:
    """`intq eval` for people."""
    hours = f" ({value['hours']:.2f} h)" if "hours" in value else ""
    human = [f"{escape(model)} in {arithmetic} on {value['examples']} examples{hours}: {_metrics(value['metrics'])}"]
    human += [f"Note: {escape(notice)}" for notice in value.get("notices", ())]
    if "float" in value:
        human.append(f"In floating point: {_metrics(value['float'])}")
    if "same" in value:
        human.append(f"The same answers: [b]{100 * value['same']:.2f} %[/]")
    return tuple(human)


def _metrics(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} [b]{_percent(name, share)}[/]" for name, share in metrics.items())


def _percent(name: str, share: float) -> str:
    return f"{100 * share:.2f}" + ("" if name.startswith(CORRELATIONS) else " %")


def glue(value: dict[str, Any], arithmetic: str) -> tuple:
    """`intq eval --task glue`: a line for each metric of each task, integers beside float."""
    both = any("float" in row for row in value["tasks"])
    table = Table(Column("task", style="bold"), "metric", box=None, header_style="dim")
    for title in ("examples", arithmetic, *(("float", "difference", "same answers") if both else ())):
        table.add_column(title, justify="right")
    for row in value["tasks"]:
        for rank, (name, share) in enumerate(row["metrics"].items()):
            cells = [f"{100 * share:.2f}", *_beside(share, row.get("float", {}).get(name))]
            cells.append("" if rank or "same" not in row else f"{100 * row['same']:.2f} %")
            first = ("", name, "") if rank else (row["task"], name, f"{row['examples']:,}")
            table.add_row(*first, *(cells if both else cells[:1]))
    cells = [f"{100 * value['score']:.2f}", *_beside(value["score"], value["float_score"]), ""]
    table.add_row("mean", "", "", *(cells if both else cells[:1]), style="bold")
    missing = [f"Not in the folder: {', '.join(value['missing'])}"] if value["missing"] else []
    return (table, *(f"[dim]{escape(line)}[/]" for line in (*missing, *value["notices"])))


def _beside(share: float, other: float | None) -> tuple[str, str]:
    return ("", "") if other is None else (f"{100 * other:.2f}", f"{100 * (share - other):+.2f}")


def timing(value: dict[str, Any], most: int = 12) -> tuple:
    """`intq bench` for people."""
    table = Table(box=None, header_style="dim")
    table.add_column("layer")
    for title in ("op", "ms", "share of time", "GOPS", "share of peak"):
        table.add_column(title, justify="left" if title == "op" else "right")
    size = f"batch {value['batch']}" + (f" x {value['sequence']} tokens" if value["sequence"] else "")
    size += f" x {value['audio']:g} s of audio" if value["audio"] else ""
    factor = f", real-time factor {value['min_ms'] / 1e3 / value['audio']:.5f}" if value["audio"] else ""
    total = sum(layer["ms"] for layer in value["layers"])
    shares = [layer["peak_share"] for layer in value["layers"] if layer["op"] == "conv2d" and layer["k"] >= 256]
    slowest = sorted(value["layers"], key=lambda layer: -layer["ms"])[:most]
    for layer in slowest:
        rate = (f"{layer['gops']:.0f}", f"{100 * layer['peak_share']:.0f} %") if layer["gops"] else ("", "")
        share = f"{100 * layer['ms'] / total:.0f} %"
        table.add_row(escape(layer["name"]), layer["op"], f"{layer['ms']:.3f}", share, *rate)
    return (
        f"[b]{value['model']}[/], {size}, {value['threads']} threads, {value['instruction_set']}: "
        f"minimum [b]{value['min_ms']:.2f} ms[/], median [b]{value['median_ms']:.2f} ms[/]{factor}, "
        f"peak memory {value['peak_memory_mb']:.0f} MB, loaded in {value['load_ms']:.0f} ms",
        f"\nThe slowest {len(slowest)} of {len(value['layers'])} layers; the peak is {value['peak_gops']:.0f} GOPS:",
        table,
        f"\nConvolutions with K >= 256: median {100 * median(shares):.0f} % of the peak." if shares else "",
    )


def prediction(value: dict[str, Any], most: int = 20) -> tuple:
    """`intq bench --predict` for people: the layers that take longest."""
    layers = value["layers"]
    slowest = sorted(layers, key=lambda layer: -layer["ms"])[:most]
    titles = (Column("ms", justify="right"), Column("bound by"), Column("tiles filled", justify="right"))
    table = Table("layer", "op", *titles, box=None, header_style="dim")
    for layer in slowest:
        filled = "" if layer["filled"] is None else f"{100 * layer['filled']:.0f} %"
        table.add_row(escape(layer["name"]), layer["op"], f"{layer['ms']:.4f}", layer["bound"], filled)
    counts = ", ".join(
        f"{sum(layer['bound'] == bound for layer in layers)} by {words}"
        for bound, words in {"products": "products", "operands": "bringing operands", "bytes": "bytes"}.items()
    )
    return (
        f"[b]{escape(value['model'])}[/], batch {value['batch']}, on a {value['gpu']}: [b]{value['ms']:.3f} ms[/] at "
        f"least, by the GPU's published limits; nothing was measured",
        f"\nThe longest {len(slowest)} of {len(layers)} kernels; bound are {counts}, others by the gap between them:",
        table,
    )


def latencies(value: dict[str, Any], most: int = 12) -> tuple:
    """`intq bench --latencies` for people: the slowest layers and the whole, in ms."""
    layers = value["layers"]
    pairs = list(dict.fromkeys(bits for each in layers.values() for bits in each))
    slowest = sorted(layers, key=lambda name: -max(layers[name].values()))[:most]
    table = Table("layer", *(Column(bits, justify="right") for bits in pairs), box=None, header_style="dim")
    for name in slowest:
        table.add_row(escape(name), *(_milliseconds(layers[name].get(bits)) for bits in pairs))
    return (
        f"[b]{escape(value['network'])}[/] on {value['target']}, {value['threads']} threads: the slowest "
        f"{len(slowest)} of {len(layers)} layers, ms of one input:",
        table,
        f"All that is no layer: {_milliseconds(value['other'])} ms.",
        f"[dim]The cache keeps it in {value['kept']}: remove that to measure again\nNext: intq search CHECKPOINT "
        f"--budget latency=0.8x --latencies {value['latencies']}[/]",
    )


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.4f}"


def verdict(value: dict[str, Any]) -> tuple:
    """`intq verify` for people."""
    table = Table(box=None, show_header=False)
    for backend, count in value["mismatches"].items():
        compared = f"{value['compared'][backend]:,} values compared"
        table.add_row(mark(count == 0), backend, f"{count:,} mismatches", f"[dim]{compared}[/]")
    count = value["float_instructions"]
    kernels = f"{len(value['kernels'])} kernels, {value['instruction_set']}"
    table.add_row(mark(count == 0), "float audit", f"{count:,} floating-point instructions", f"[dim]{kernels}[/]")
    proof = value["overflow"]
    widest = f"widest {proof['widest_bits']} of 32 bits"
    table.add_row(mark(proof["proven"]), "overflow", "impossible, proven", f"[dim]{widest}, {proof['node']}[/]")
    human = [table]
    if value["first_mismatch"]:
        human.append(f"[red]First mismatch:[/] {escape(str(value['first_mismatch']))}")
    if value["layers"]:
        worst = Table("layer", Column("SQNR", justify="right"), box=None, header_style="dim")
        for layer in value["layers"][:5]:
            worst.add_row(escape(layer["name"]), f"{layer['sqnr_db']:.1f} dB")
        human += ["\nThe layers that cost most accuracy, of " + str(len(value["layers"])) + ":", worst]
    return tuple(human)


def functions(rows: list[dict[str, Any]]) -> tuple:
    """`intq functions`: largest absolute errors."""
    numbers = [Column(name, justify="right") for name in ("bits", "inputs", "error", "I-BERT's", "times as large")]
    table = Table("function", "interval", *numbers, box=None, header_style="dim")
    for row in rows:
        low, high = row["interval"]
        theirs, ratio = row["ibert_error"], row["ratio"]
        table.add_row(
            row["function"],
            f"below 2^{row['bits']}" if row["exact"] else escape(f"[{low:.4g}, {high:.4g}]"),
            str(row["bits"]),
            f"{row['compared']:,}",
            "[green]exact[/]" if row["exact"] else f"{row['error']:.1e}",
            "" if theirs is None else f"{theirs:.1e}",
            "" if ratio is None else f"[b]{ratio:.0f}[/]",
        )
    return (table,)


def mark(ok: bool) -> str:
    return "[green]✓[/]" if ok else "[red]✗[/]"
