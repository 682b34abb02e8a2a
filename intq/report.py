"""The page of `intq report`: the facts of :func:`intq.reporting.facts` as one HTML file that needs nothing else.

No script, no font, no image is fetched: plots are SVG within the page, and colours follow the reader's choice of light
or dark. What was not measured has no section; the last one says how to get it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from intq import plots
from intq.budgets import spelled
from intq.plots import scientific
from intq.show import CORRELATIONS

SLOWEST = 12  # nodes whose time is shown

Facts = Mapping[str, Any]


def page(facts: Facts) -> str:
    """The whole HTML file."""
    network = facts["network"]
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    body = "\n".join(part for section in SECTIONS if (part := section(facts)))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(network["model"])} · intq report</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main>
{_header(facts)}
{body}
<footer>Written by intq {escape(facts["report"]["versions"]["intq"])} on {_day(facts["report"]["written"])}.</footer>
</main>
</body>
</html>
"""


# ---- sections, in their order ------------------------------------------------------------------------------------


def _header(facts: Facts) -> str:
    network, costs = facts["network"], facts["costs"]
    reads = {"vision": "images", "nlp": "text", "speech": "recordings"}.get(network["domain"], "arrays")
    shape = " and ".join(f"{v['dtype']} {_shape(v['shape'])}" for v in network["inputs"])
    classes = f", {network['labels']:,} classes" if network["labels"] else ""
    made = f" Made from {_code(network['source'])}." if network["source"] else ""
    return f"""<header>
<p class="eyebrow">intq report</p>
<h1>{escape(network["model"])}</h1>
<p class="lead">Reads {reads} ({escape(shape)}){classes}, and computes with integers alone in {network["nodes"]} nodes.
{made} Written {_day(network["written"])}.</p>
<div class="tiles">
{"".join(_tile(*each) for each in _headlines(facts, costs))}</div>
</header>"""


def _headlines(facts: Facts, costs: Mapping[str, float]) -> Iterable[tuple[str, str, str]]:
    w8a8 = facts["w8a8"] or {}
    rows, history = facts["accuracy"], (facts["training"] or {}).get("history", ())
    if rows:
        name, value = next(iter(rows[-1]["metrics"].items()))
        yield name, _metric(name, value), f"{rows[-1]['examples']:,} examples"
    elif history and (names := _metrics(history)):
        yield names[0], _metric(names[0], history[-1][names[0]]), "after training"
    yield (
        "Constants",
        spelled("size", _round(costs["size"])),
        _share(costs["size"], w8a8.get("size"), "weights and scales"),
    )
    yield "Operations", spelled("bops", _round(costs["bops"])), _share(costs["bops"], w8a8.get("bops"), "for one input")
    weights = [(row["parameters"], row["weight_bits"]) for row in facts["layers"] if row["weight_bits"]]
    if total := sum(count for count, _ in weights):
        yield "Bits of a weight", f"{sum(count * bits for count, bits in weights) / total:.3g}", "on average"
    yield "Peak memory", spelled("memory", _round(costs["memory"])), "of values, one input"
    if facts["bench"]:
        yield "Latency", f"{facts['bench']['min_ms']:.3g} ms", f"least, {_threads(facts['bench']['threads'])}"
    if facts["verify"]:
        count = sum(facts["verify"]["mismatches"].values())
        yield "Mismatches", f"{count:,}", "between backends"


def _accuracy(facts: Facts) -> str:
    if not (rows := facts["accuracy"]):
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    first = names[0]
    base = next((row["metrics"].get(first) for row in rows if row["arithmetic"] == "float"), None)
    head = ["network", ".arithmetic", *names, *([] if base is None else ["against float"]), "examples", "constants"]
    body = []
    for row in rows:
        cells = [_metric(name, row["metrics"][name]) if name in row["metrics"] else "" for name in names]
        if base is not None:
            cells.append("" if row["arithmetic"] == "float" else _difference(row["metrics"][first] - base))
        size = spelled("size", _round(row["bytes"])) if row["bytes"] else ""
        body.append([escape(row["name"]), row["arithmetic"], *cells, f"{row['examples']:,}", size])
    told = f"Measured for this report on {_code(rows[0]['data'])}."
    return _section("accuracy", "Accuracy", told, _table(head, body))


def _layers(facts: Facts) -> str:
    rows = facts["layers"]
    total = {name: sum(row[name] or 0 for row in rows) for name in ("parameters", "bytes", "macs", "bops", "ms")}
    sqnr = any(row["sqnr_db"] is not None for row in rows)
    columns: list[tuple[str, Callable[[Facts], str]]] = [
        ("weights", lambda row: _bits(row["weight_bits"])),
        ("inputs", lambda row: _bits(row["input_bits"])),
        ("parameters", lambda row: _count(row["parameters"])),
        ("bytes", lambda row: _count(row["bytes"]) + _bar(row["bytes"], total["bytes"])),
        ("MACs", lambda row: _count(row["macs"])),
        ("bit operations", lambda row: _count(row["bops"]) + _bar(row["bops"], total["bops"])),
    ]
    if sqnr:
        columns.append(("SQNR, dB", lambda row: "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"))
    if facts["bench"]:
        columns.append(("ms", lambda row: f"{row['ms']:.3f}" + _bar(row["ms"], total["ms"], "second")))
    body = [[escape(row["name"]) or "everything else", *(cell(row) for _, cell in columns)] for row in rows]
    last = {"weight_bits": None, "input_bits": None, "sqnr_db": None, **total}
    foot = ["total", *(_unbarred(cell(last)) for _, cell in columns)]
    told = "Bits of each layer's weights and of what it reads, and what it costs for one input"
    told += _length(facts["network"])
    told += ". Bars are shares of the whole." + (
        " SQNR: of its values, against the float network on calibration data." if sqnr else ""
    )
    return _section("layers", "Layers", told, _table(["layer", *(name for name, _ in columns)], body, foot, "sticky"))


def _sensitivity(facts: Facts) -> str:
    plan, rows = facts["plan"], [row for row in facts["layers"] if row["name"]]
    if not plan or not any(row["errors"] for row in rows):
        return ""
    chosen = {row["name"]: f"W{row['weight_bits']}A{row['input_bits']}" for row in rows}
    errors = {row["name"]: row["errors"] for row in rows}
    parts = []
    traced = [row for row in rows if row["traces"]]
    if traced:
        made = {row["name"]: row["errors"].get(chosen[row["name"]], 0.0) for row in traced}
        body = [
            [
                escape(row["name"]),
                *(_bits(row[kind]) for kind in ("weight_bits", "input_bits")),
                *(scientific(row["traces"][kind]) for kind in ("weights", "inputs")),
                scientific(made[row["name"]]) + _bar(made[row["name"]], sum(made.values())),
            ]
            for row in traced
        ]
        what = "mean trace" if plan["sensitivity_method"] == "hessian" else "mean squared gradient"
        head = ["layer", "weights", "inputs", f"{what}, weights", f"{what}, inputs", "error as chosen"]
        parts.append(_table(head, body, mark="sticky"))
    caption = "The error of every layer at each precision it was offered; the one it has is filled and named."
    if any(error <= 0 for each in errors.values() for error in each.values()):
        caption += " An error of 0 has no place on the scale."
    parts.append(f'<div class="plots">{_figure(plots.choices(errors, chosen), caption)}</div>')
    seconds = plan["sensitivity_seconds"]
    times = "the trace times the squared distance that rounding moves weights and inputs"
    how, error = {
        "loss": ("By rounding one layer at a time", "twice the divergence of the network's answers from the float's"),
        "hessian": ("By the Hessian's mean trace", times),
        "fisher": ("By squared gradients", times),
    }.get(plan["sensitivity_method"], ("", times))
    told = f"{how}, measured in {_seconds(seconds)}. " if how else ""
    told += f"The error of a precision is {error}."
    return _section("sensitivity", "Sensitivity", told, *parts)


def _search(facts: Facts) -> str:
    if not (plan := facts["plan"]):
        return ""
    table = [
        [
            COSTS.get(name, name),
            spelled(name, _round(plan["w8a8"][name])) if name in plan["w8a8"] else "",
            spelled(name, _round(plan["budgets"][name])) if name in plan["budgets"] else "",
            spelled(name, _round(value)),
            f"{100 * value / plan['w8a8'][name]:.1f} %" if plan["w8a8"].get(name) else "",
        ]
        for name, value in plan["costs"].items()
    ]
    figures = []
    for name, points in plan["fronts"].items():
        if sum(y > 0 for _, y in points) < 2 or name not in plan["costs"] or plan["error"] <= 0:
            continue
        unit, scale = _unit(name, max(x for x, _ in points))
        limits = {"budget": plan["budgets"].get(name)}
        drawn = plots.front(
            name,
            f"{COSTS.get(name, name)}, {unit}",
            [(x / scale, y) for x, y in points],
            (plan["costs"][name] / scale, plan["error"]),
            {word: value / scale for word, value in limits.items() if value},
        )
        figures.append(_figure(drawn, "The least error at each cost: no plan lies below the line."))
    proven = "" if plan["gap"] is None else f", proven within {100 * plan['gap']:.2g} % of the best there is"
    proven = ", proven the best there is" if plan["gap"] == 0 else proven
    tried = f", {plan['evaluations']} networks evaluated" if plan["evaluations"] else ""
    told = f"Found by {escape(plan['method'])} in {_seconds(plan['seconds'])}{proven}{tried}. Costs are those that the "
    told += "search counts: of the layers that have weights, on inputs as it was given."
    if figures and len(plan["fronts"]) > 1:
        told += " Each front limits its own cost alone; a plan within several budgets lies on or above all of them."
    parts = [_table(["cost", "W8A8", "budget", "plan", "of W8A8"], table)]
    if figures:
        parts.append(f'<div class="plots">{"".join(figures)}</div>')
    return _section("plan", "Plan", told, *parts)


def _training(facts: Facts) -> str:
    if not (training := facts["training"]):
        return ""
    recipe, rows = training["recipe"], training["history"]
    names = _metrics(rows)
    body = [
        [f"{row['epoch']:g}", f"{row['step']:,}", f"{row['loss']:.4f}", *(_metric(n, row[n]) for n in names)]
        for row in rows
    ]
    parts = []
    if len(rows) > 1:
        epochs = [row["epoch"] for row in rows]
        drawn = [("loss", "loss", [row["loss"] for row in rows])]
        drawn += [(name, f"{name}, %", [100 * row[name] for row in rows]) for name in names[:1]]
        parts.append(
            f'<div class="plots">{"".join(_figure(plots.history(n, epochs, v, label)) for n, label, v in drawn)}</div>'
        )
    parts.append(_table(["epoch", "steps", "loss", *names], body))
    told = (
        f"Every step computed with the deployed integers. {recipe['optimizer']}, batches of {recipe['batch']}, rate "
        f"{recipe['lr']:g}"
    )
    told += f", {100 * recipe['distill']:g} % of the loss from a teacher" if recipe["distill"] else ""
    told += f", learned steps ({recipe['steps']})" if recipe["steps"] != "none" else ""
    return _section("training", "Training", f"{escape(told)}.", *parts)


def _curvature(facts: Facts) -> str:
    if not (found := facts["curvature"]):
        return ""
    plane, first = found["landscape"], found["eigenvalues"]
    drawn = plots.surface(plane["places"], plane["loss"], first)
    left = _figure(drawn, "The divergence in nats along the two top eigenvectors; the cross is the network.")
    spread = plots.density(found["density"]["grid"], found["density"]["values"])
    right = _figure(spread, "How many eigenvalues there are where: along those near 0 the answers do not change.")
    values = " and ".join(map(scientific, first))
    told = (
        f"The float network's divergence from its own answers on {found['samples']} inputs, by relative changes of its "
        f"filters, and the Hessian of that: {found['parameters']:,} eigenvalues, the largest {values}, the sum about "
        f"{scientific(found['trace'])}."
    )
    return _section("curvature", "Loss landscape", told, f'<div class="plots">{left}{right}</div>')


def _time(facts: Facts) -> str:
    if not (value := facts["bench"]):
        return ""
    size = f"batch {value['batch']}" + (f", {value['sequence']} tokens" if value["sequence"] else "")
    size += f", {value['audio']:g} s of audio" if value["audio"] else ""
    tiles = [
        ("Least", f"{value['min_ms']:.3g} ms", size),
        ("Median", f"{value['median_ms']:.3g} ms", _threads(value["threads"])),
        ("Loading", f"{value['load_ms']:.3g} ms", "once"),
        ("Memory", f"{value['peak_memory_mb']:.0f} MB", "of the process"),
        ("Peak of the core", f"{value['peak_gops']:.0f} GOPS", value["instruction_set"]),
    ]
    slowest, total = sorted(value["layers"], key=lambda each: -each["ms"]), sum(x["ms"] for x in value["layers"])
    body = [
        [
            escape(each["name"]),
            each["op"],
            f"{each['ms']:.3f}" + _bar(each["ms"], total, "second"),
            f"{each['gops']:.0f}" if each["gops"] else "",
            f"{100 * each['peak_share']:.0f} %" if each["peak_share"] else "",
        ]
        for each in slowest[:SLOWEST]
    ]
    which = "All" if len(slowest) <= SLOWEST else f"The slowest {SLOWEST} of {len(slowest)}"
    table = _table(["node", ".op", "ms", "GOPS", "of the peak"], body, mark="sticky")
    boxes = f'<div class="tiles">{"".join(_tile(*each) for each in tiles)}</div>'
    return _section("time", "Time", "", boxes, f'<h3 style="margin-top:20px">{which} nodes</h3>', table)


def _proof(facts: Facts) -> str:
    proof, value = facts["overflow"], facts["verify"]
    checks = [(True, "No sum can overflow", f"the widest needs {proof['widest_bits']} of 32 bits, in {proof['node']}")]
    if value:
        for backend, count in value["mismatches"].items():
            what = PROOFS.get(backend, backend)
            compared = f"{value['compared'][backend]:,} values compared"
            checks.append((not count, f"{count:,} mismatches: {what}", compared))
        kernels = f"{len(value['kernels'])} kernels disassembled, {value['instruction_set']}"
        count = value["float_instructions"]
        checks.append((not count, f"{count:,} floating-point instructions", kernels))
    items = "".join(
        f'<li><span class="{"yes" if ok else "no"}">{"✓" if ok else "✗"}</span>'
        f"<span>{escape(what)}<small>{escape(how)}</small></span></li>"
        for ok, what, how in checks
    )
    return _section("proof", "Proof", "", f'<ul class="checks card" style="padding:4px 0">{items}</ul>')


def _reproduce(facts: Facts) -> str:
    network, plan, made, mine = facts["network"], facts["plan"], facts["network"]["made"], facts["report"]
    commands = [(plan or {}).get("command"), (made or {}).get("command"), mine["command"]]
    lines = "".join(f"<span>{_spelled(command)}</span>" for command in commands if command)
    rows = [("Digest", _code(network["digest"]))]
    if made:
        rows += [("Seed", str(made["seed"])), ("Made with", _versions(made["versions"]))]
    if network["calibration"]:
        rows.append(("Calibrated", escape(network["calibration"])))
    rows.append(("Artifact", f"{_code(network['artifact'])}, written {_day(network['written'], True)}"))
    rows.append(("Reported with", f"{_versions(mine['versions'])}, {escape(mine['machine'])}"))
    rows += [("Note", escape(notice)) for notice in network["notices"]]
    items = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    told = "The digest is SHA-256 of the network's meaning: inputs, nodes and constants."
    card = f'<div class="card"><dl>{items}</dl></div>'
    return _section("reproduce", "To reproduce", told, f"<pre>{lines}</pre>", card)


def _missing(facts: Facts) -> str:
    folder, plan = facts["network"]["artifact"], facts["plan"]
    lines = [
        (facts["accuracy"], "Accuracy", "--eval DATA, labelled examples; with --checkpoint also the float network's"),
        (plan, "Sensitivity, plan and Pareto front", "--plan FILE, as `intq search` writes it"),
        (not plan or plan["fronts"], "Pareto front", "a plan of a newer `intq search`"),
        (facts["training"], "Training", "`intq finetune`; this network was not trained as integers"),
        (facts["curvature"], "Loss landscape and eigenvalues", "--checkpoint CHECKPOINT --data DATA"),
        (facts["bench"], "Time", "--bench"),
        (facts["verify"], "Backends compared, float audit", "--verify"),
    ]
    items = [f"<li>{what}: {_ticks(how)}</li>" for found, what, how in lines if not found]
    if not items:
        return ""
    told = f"Left out of this report of {_code(folder)}, and what brings it:"
    return _section("missing", "Not measured", told, f'<ul class="missing muted">{"".join(items)}</ul>')


SECTIONS = (
    _accuracy,
    _layers,
    _search,
    _sensitivity,
    _training,
    _curvature,
    _time,
    _proof,
    _reproduce,
    _missing,
)
COSTS = {"size": "size", "bops": "bit operations", "memory": "peak memory", "latency": "latency"}
PROOFS = {
    "torch": "torch against the reference, at every node",
    "cpu": "the compiled kernels against the reference",
    "alone_equals_padded": "padded in a batch against alone",
}


# ---- pieces ------------------------------------------------------------------------------------------------------


def _section(name: str, title: str, told: str, *parts: str) -> str:
    lead = f'<p class="lead">{told}</p>\n' if told else '<p class="lead"></p>\n'
    inner = "\n".join(parts)
    return f'<section id="{name}">\n<h2>{title}</h2>\n{lead}{inner}\n</section>'


def _table(head: Sequence[str], body: Iterable[Sequence[str]], foot: Sequence[str] = (), mark: str = "") -> str:
    """A table that scrolls within itself. Cells are HTML; a column whose title begins with a dot is of words."""
    left = [title.startswith(".") for title in head]

    def line(cells: Sequence[str], first: str = "th") -> str:
        tags = [(first if i == 0 else "td", ' class="left"' if left[i] else "") for i in range(len(cells))]
        row = "".join(f"<{tag}{kind}>{cell}</{tag}>" for (tag, kind), cell in zip(tags, cells, strict=True))
        return f"<tr>{row}</tr>"

    titles = "".join(
        f'<th scope="col"{" class=left" if words else ""}>{escape(title.removeprefix("."))}</th>'
        for title, words in zip(head, left, strict=True)
    )
    rows = "\n".join(line(cells) for cells in body)
    last = f"\n<tfoot>{line(foot)}</tfoot>" if foot else ""
    kind = f' class="{mark}"' if mark else ""
    return (
        f'<div class="scroll" tabindex="0"><table{kind}>\n<thead><tr>{titles}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>{last}\n</table></div>"
    )


def _figure(svg: str, caption: str = "") -> str:
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>\n{svg}{words}</figure>\n"


def _tile(name: str, value: str, note: str) -> str:
    number, _, unit = map(escape, value.partition(" "))
    shown = f"{number} <em>{unit}</em>" if unit else number
    return f'<div class="tile"><small>{escape(name)}</small><b>{shown}</b><span>{escape(note)}</span></div>\n'


def _bar(value: float, whole: float, colour: str = "") -> str:
    share = max(0.0, min(1.0, value / whole)) if whole else 0.0
    return f'<span class="bar {colour}"><i style="width:{100 * share:.1f}%"></i></span>'


def _unbarred(cell: str) -> str:
    """A cell without its bar, but with its place."""
    number, bar, _ = cell.partition('<span class="bar')
    return f'{number}<span class="bar none"></span>' if bar else cell


def _bits(bits: int | None) -> str:
    return f'<span class="bits b{bits}">{bits}</span>' if bits else ""


def _metric(name: str, value: float) -> str:
    return f"{value:.4f}" if name.startswith(CORRELATIONS) else f"{100 * value:.2f} %"


def _difference(share: float) -> str:
    return f"{100 * share:+.2f} points".replace("-", "−")


def _metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in rows[-1] if name not in ("step", "epoch", "loss")] if rows else []


def _share(value: float, whole: float | None, note: str) -> str:
    return f"{100 * value / whole:.1f} % of W8A8" if whole and value < whole else note


def _count(value: float) -> str:
    return f"{value:,}" if value else "0"


def _round(value: float) -> float:
    """To three digits: `spelled` shows six."""
    return float(f"{value:.3g}")


def _unit(cost: str, largest: float) -> tuple[str, float]:
    """The unit in which such costs are plotted, and how much one of it is."""
    words = spelled(cost, _round(largest)).split()
    return (words[1], _round(largest) / float(words[0])) if len(words) == 2 else (cost, 1.0)


def _seconds(value: float) -> str:
    return f"{1e3 * value:.0f} ms" if value < 1 else f"{value:.1f} s" if value < 90 else f"{value / 60:.1f} min"


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count > 1 else "")


def _shape(shape: Sequence[Any]) -> str:
    return " × ".join(map(str, shape))


def _length(network: Facts) -> str:
    if not network["length"]:
        return ""
    return f" of {network['length']:,} " + ("tokens" if network["domain"] == "nlp" else "samples")


def _code(text: Any) -> str:
    return f"<code>{escape(str(text))}</code>"


def _spelled(command: str) -> str:
    """A command that is broken between its options."""
    first, *options = escape(command).split(" --")
    return first + "".join(f" <i>--{option}</i>" for option in options)


def _ticks(text: str) -> str:
    """HTML of a text in which `this` is code, and so are options."""
    return "".join(_code(part) if i % 2 else escape(part) for i, part in enumerate(text.split("`")))


def _versions(versions: Mapping[str, str]) -> str:
    return escape(", ".join(f"{name} {version}" for name, version in versions.items()))


def _day(moment: str, time: bool = False) -> str:
    return moment.replace("T", " ") if time else moment.partition("T")[0]
