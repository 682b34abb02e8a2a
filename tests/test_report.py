"""`intq report`, looked at in a real browser: nothing is fetched, nothing overflows, everything can be read."""

import shutil

import pytest
import torch
from commandline import answer, complaint
from graphs import random_graph
from PIL import Image
from playwright.sync_api import sync_playwright
from text_graphs import random_text_graph
from torch import nn

from intq import artifact
from intq.cost import network_cost
from intq.dataflow import shapes
from intq.errors import IntqError
from intq.plots import scientific
from intq.precision import read_plan, write_plan
from intq.quantize import observe, quantized
from intq.report import page
from intq.reporting import facts, layer_names
from intq.vision.synthetic import random_images, random_model

torch.set_num_threads(1)
SECTIONS = ["accuracy", "layers", "plan", "sensitivity", "training", "curvature", "time", "proof", "reproduce"]
SCREENS = {"desktop": (1200, 900), "phone": (390, 844)}

# Every element with words of its own: how its colour stands out from what is painted behind it (WCAG 2, 1.4.3).
CONTRAST = """() => {
  const pixel = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = (colours) => {
    for (const colour of colours) { pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1); }
    const [r, g, b] = [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3)
      .map((x) => x / 255).map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("main *")) {
    const words = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join("");
    if (!words || element.closest("title, style, defs")) continue;
    const behind = [];
    for (let e = element; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor);
    const own = getComputedStyle(element);
    const text = light([...behind, element instanceof SVGElement ? own.fill : own.color]), ground = light(behind);
    found.push([(Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05), words]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a checkpoint, photos, a plan, and two networks by it, one of them trained."""
    folder = tmp_path_factory.mktemp("report")
    torch.save(random_model("small_resnet").state_dict(), folder / "small.pth")
    for i, pixels in enumerate(random_images(8, (28, 28), seed=1, channels=1)):
        path = folder / "photos" / str(i % 2) / f"{i}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(pixels[..., 0]).save(path)
    network, data = (folder / "small.pth", "--data", folder / "photos"), ("--samples", 8)
    plan = folder / "plan.json"
    answer("search", *network, *data, "--sensitivity-samples", 2, "--budget", "size=0.7x,bops=0.5x", "-o", plan)
    answer("quantize", *network, *data, "--plan", plan, "--rounding", "nearest", "-o", folder / "net")
    answer("finetune", *network, *data, "--plan", plan, "--epochs", 2, "--batch", 4, "-o", folder / "tuned")
    return folder


@pytest.fixture(scope="module")
def whole(made):
    """The report with everything in it, and its JSON."""
    measured = ("--eval", made / "photos", "--beside", made / "net", "--verify", "--bench", "--samples", 4)
    float_network = ("--checkpoint", made / "small.pth", "--data", made / "photos")
    file = made / "report.html"
    return file, answer("report", made / "tuned", *measured, *float_network, "-o", file)


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium-headless-shell")  # of scripts/setup, else that of playwright itself
    start = {"executable_path": path, "args": ["--no-sandbox"]}  # which root may not use; the page is our own
    with sync_playwright() as playwright, playwright.chromium.launch(**start) as opened:
        yield opened


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_everywhere(whole, browser, scheme, screen, tmp_path):
    width, height = SCREENS[screen]
    wrong, requests = [], []
    with browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height}) as context:
        view = context.new_page()
        view.on("console", lambda message: wrong.append(message.text))
        view.on("pageerror", lambda error: wrong.append(str(error)))
        view.on("request", lambda request: requests.append(request.url))
        view.goto(whole[0].as_uri())
        assert not wrong and requests == [whole[0].as_uri()]
        assert view.evaluate("document.documentElement.scrollWidth") == width
        assert view.locator("section").evaluate_all("all => all.map(each => each.id)") == SECTIONS
        plots = view.locator("svg").evaluate_all("all => all.map(each => each.getBoundingClientRect().toJSON())")
        assert len(plots) == 7 and all(250 < plot["width"] < width and plot["height"] > 150 for plot in plots)
        identifiers = view.locator("[id]").evaluate_all("all => all.map(each => each.id)")
        assert len(identifiers) == len(set(identifiers))
        faint = [words for ratio, words in view.evaluate(CONTRAST) if ratio < 4.5]
        assert not faint
        ground = view.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(",")))
        assert brightness < 150 if scheme == "dark" else brightness > 600
        assert len(view.screenshot(full_page=True, path=tmp_path / "page.png")) > 50_000


def test_it_tells_what_the_artifact_and_the_measurements_hold(made, whole):
    file, value = whole
    graph, words = artifact.load(made / "tuned"), file.read_text(encoding="utf-8")
    cost = network_cost(graph)
    for name, total in (("bytes", cost.size), ("macs", cost.macs), ("bops", cost.bops)):
        assert sum(row[name] for row in value["layers"]) == total and f"{total:,}" in words
    plan = read_plan(made / "plan.json")
    other = value["w8a8"]  # but for a few constants, such as those that make copies of 4 bits, what the plan says
    assert other["bops"] == plan.w8a8["bops"] and 0 <= other["size"] - plan.w8a8["size"] < 0.02 * other["size"]
    assert f"{100 * cost.size / other['size']:.1f} % of W8A8" in words and cost.size < other["size"]
    assert [row["name"] for row in value["layers"]] == [*plan.layers, ""]
    for row in value["layers"][:-1]:
        layer = plan.layers[row["name"]]
        assert (row["weight_bits"], row["input_bits"]) == (layer.weight_bits, layer.input_bits)
        assert row["traces"] == plan.traces[row["name"]] and scientific(row["traces"]["weights"]) in words
    assert {*value["plan"]["fronts"]} == {"size", "bops"} == {*value["plan"]["budgets"]}
    assert sum(row["ms"] for row in value["layers"]) == pytest.approx(sum(x["ms"] for x in value["bench"]["layers"]))
    assert [(row["name"], row["arithmetic"]) for row in value["accuracy"]] == [
        ("resnet8", "float"),
        ("net", "integers"),
        ("tuned", "integers"),
    ]
    evaluated = answer("eval", made / "tuned", "--data", made / "photos")
    assert (
        value["accuracy"][-1]["metrics"]
        == evaluated["metrics"]
        == {name: value["training"]["history"][-1][name] for name in evaluated["metrics"]}
    )
    assert sum(value["verify"]["mismatches"].values()) == 0 == value["verify"]["float_instructions"]
    assert value["network"]["digest"] == artifact.digest(graph) and artifact.digest(graph) in words
    assert value["network"]["made"]["seed"] == 0 and value["network"]["made"]["versions"]["torch"] in words
    curvature = value["curvature"]
    assert curvature["samples"] == 4 and len(curvature["eigenvalues"]) == 2
    assert curvature["landscape"]["loss"][7][7] == 0 == min(map(min, curvature["landscape"]["loss"]))


def test_what_was_not_measured_is_left_out_and_said(made, tmp_path):
    value = answer("report", made / "net", "-o", tmp_path / "report.html")
    words = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [name for name in (*SECTIONS, "missing") if f'<section id="{name}">' in words] == [
        "layers",
        "plan",
        "sensitivity",
        "proof",
        "reproduce",
        "missing",
    ]
    assert value["accuracy"] == [] and value["verify"] is value["bench"] is value["curvature"] is None
    assert value["training"] is None and all(row["sqnr_db"] for row in value["layers"][:-1]) and "SQNR" in words
    for option in ("--eval", "--checkpoint", "--bench", "--verify", "intq finetune"):
        assert option in words[words.index('id="missing"') :]


@pytest.mark.parametrize("graph", [random_graph(2, blocks=1), random_text_graph(0, layers=1)], ids=["image", "text"])
def test_a_bare_artifact_has_a_report(graph, tmp_path):
    artifact.save(graph, tmp_path / "net")
    value = answer("report", tmp_path / "net", "-o", tmp_path / "report.html")
    words = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert value["network"]["model"] == "net" and value["plan"] is None and "--plan FILE" in words
    sizes = {"s": value["network"]["length"]}
    assert value["costs"]["bops"] == network_cost(graph, sizes).bops > 0


def test_layers_are_told_by_order_where_curves_end_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3)).eval()
    seen = observe(model, [torch.randn(16, 8)], rounding="nearest")
    graph, known = quantized(seen), {name: each.shapes for name, each in shapes(seen.graph).items()}
    assert layer_names(graph, known, "it") == {"1": "0", "3": "2", "4": "4"}
    with pytest.raises(IntqError, match=r"it is of another network \(3 layers\) than this artifact \(3 layers\): 3 is"):
        layer_names(graph, {**known, "2": ((4, 7),)}, "it")
    with pytest.raises(IntqError, match=r"it is of another network \(4 layers\)"):
        layer_names(graph, {**known, "5": ((2, 2),)}, "it")


def test_names_are_words_and_no_markup(tmp_path):
    graph = random_graph(2, blocks=1)
    artifact.save(graph, tmp_path / "net")
    told = facts(tmp_path / "net", artifact.load(tmp_path / "net"))
    told["network"]["model"] = told["layers"][0]["name"] = told["report"]["command"] = "<script>alert(1)</script> & co"
    words = page(told)
    assert "<script" not in words and words.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; co") == 4


def test_it_refuses_in_one_sentence_and_writes_nothing(made, tmp_path):
    net, file = made / "net", tmp_path / "report.html"
    assert "has no graph.json" in complaint("report", tmp_path, "-o", file)
    assert "give the name of a file in a folder that exists" in complaint("report", net, "-o", tmp_path)
    assert "say which network with --checkpoint" in complaint("report", net, "-o", file, "--data", made / "photos")
    assert "give labelled examples with --eval" in complaint("report", net, "-o", file, "--beside", net)
    small = ("--checkpoint", made / "small.pth")
    assert "--checkpoint is for its loss landscape" in complaint("report", net, "-o", file, *small)
    plan = read_plan(made / "plan.json")
    write_plan(tmp_path / "other.json", type(plan)("other", {"only": next(iter(plan.layers.values()))}))
    said = complaint("report", net, "-o", file, "--plan", tmp_path / "other.json")
    assert "the plan is of another network (1 layers) than this artifact (10 layers)" in said
    answer("quantize", "small_mobilenet_v2", "--random", "-o", tmp_path / "mobile")
    said = complaint("report", tmp_path / "mobile", "-o", file, *small, "--data", made / "photos", "--samples", 2)
    assert "resnet8 is of another network (10 layers)" in said
    assert not file.exists()


def test_numbers_have_three_digits():
    numbers = (0.0, 1.0, 3321.4, 0.012345, 1.2345e-7, -4.5e-4, 5.66e5, 1e-9)
    words = ["0", "1", "3,320", "0.0123", "1.23·10⁻⁷", "−4.5·10⁻⁴", "5.66·10⁵", "1·10⁻⁹"]
    assert [scientific(number) for number in numbers] == words
