"""The answers of the commands for people: tables of the documented JSON values."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from rich.markup import escape
from rich.table import Column, Table


def labels(rows: list[dict[str, Any]]) -> Table:
    """`intq run`: the best labels of each file."""
    table = Table(
        "input",
        Column("label", style="bold", no_wrap=True, max_width=40),
        Column("score", justify="right"),
        box=None,
        header_style="dim",
    )
    for item in rows:
        for rank, row in enumerate(item["top"]):
            name = "" if rank else escape(Path(item["input"]).name)
            table.add_row(name, escape(row["label"]), str(row["score"]), style="dim" if rank else None)
    return table


def timing(value: dict[str, Any], most: int = 12) -> tuple:
    """`intq bench` for people."""
    table = Table(box=None, header_style="dim")
    table.add_column("layer")
    for title in ("op", "ms", "share of time", "GOPS", "share of peak"):
        table.add_column(title, justify="left" if title == "op" else "right")
    total = sum(layer["ms"] for layer in value["layers"])
    shares = [layer["peak_share"] for layer in value["layers"] if layer["op"] == "conv2d" and layer["k"] >= 256]
    slowest = sorted(value["layers"], key=lambda layer: -layer["ms"])[:most]
    for layer in slowest:
        rate = (f"{layer['gops']:.0f}", f"{100 * layer['peak_share']:.0f} %") if layer["gops"] else ("", "")
        share = f"{100 * layer['ms'] / total:.0f} %"
        table.add_row(escape(layer["name"]), layer["op"], f"{layer['ms']:.3f}", share, *rate)
    return (
        f"[b]{value['model']}[/], batch {value['batch']}, {value['threads']} threads, {value['instruction_set']}: "
        f"minimum [b]{value['min_ms']:.2f} ms[/], median [b]{value['median_ms']:.2f} ms[/], "
        f"peak memory {value['peak_memory_mb']:.0f} MB, loaded in {value['load_ms']:.0f} ms",
        f"\nThe slowest {len(slowest)} of {len(value['layers'])} layers; the peak is {value['peak_gops']:.0f} GOPS:",
        table,
        f"\nConvolutions with K >= 256: median {100 * median(shares):.0f} % of the peak." if shares else "",
    )


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


def mark(ok: bool) -> str:
    return "[green]✓[/]" if ok else "[red]✗[/]"
