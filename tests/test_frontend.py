"""Speech features, real and integer, against an implementation of their own in float64 and torch's spectrum."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intq import dims
from intq.backends import reference
from intq.backends.reference import NumpyDialect
from intq.errors import IntqError
from intq.frontend import FrontEnd, LogMel, log_mel_node_parts, mel_filters, window_of
from intq.graph import Graph, make_node
from intq.ops.frames import MOST_FRAMES, mean_bits, normalize_parts
from intq.ops.log_mel import LOG_BITS, logarithm
from intq.value import DTYPE_RANGE, Value

torch.set_num_threads(1)

QUARTZNET = FrontEnd(16000, window=320, hop=160, fft=512, bands=64)
CITRINET = FrontEnd(16000, window=400, hop=160, fft=512, bands=80)
BINNED = FrontEnd(16000, window=400, hop=160, fft=400, bands=80, low_hz=40, high_hz=7600, mel_corners="bins")
EARLY = replace(QUARTZNET, padding="reflect", extra_frame=True)
SMALL = FrontEnd(8000, window=24, hop=10, fft=32, bands=5)  # what hypothesis tries many of
FRONT_ENDS = {"quartznet": QUARTZNET, "citrinet": CITRINET, "early": EARLY, "binned": BINNED}
RATE = 16000


# ---- signals -----------------------------------------------------------------------------------------------------


def int16(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x), *DTYPE_RANGE["int16"]).astype(np.int16)


def vowels(seconds: float = 1.5, level: float = 0.2, seed: int = 0) -> np.ndarray:
    """Something like speech: pulses through formants that move, pauses, a little noise as of a microphone."""
    rng, t = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
    pitch = np.cumsum(110 + 30 * np.sin(2 * np.pi * 0.7 * t)) / RATE
    sound = np.zeros_like(t)
    for harmonic in range(1, 40):
        frequency = 110 * harmonic
        peaks = [(500 + 200 * np.sin(5 * t), 90), (1500 + 500 * np.cos(3 * t), 120), (2600, 160)]
        gain = sum(1 / (1 + ((frequency - centre) / width) ** 2) for centre, width in peaks)
        sound += gain * np.sin(2 * np.pi * harmonic * pitch)
    envelope = np.clip(np.sin(2 * np.pi * 1.7 * t), 0, 1)
    sound = sound / np.abs(sound).max() * envelope * level + rng.normal(0, 2e-4, len(t))
    return int16(sound * 2**15)


def chirp(seconds: float = 2.0) -> np.ndarray:
    """From 20 Hz to nearly half the rate, as loud as can be."""
    t = np.arange(int(seconds * RATE)) / RATE
    return int16(2**15 * np.sin(2 * np.pi * (20 * t + (7900 - 20) / (2 * seconds) * t**2)))


def square(samples: int = 8000) -> np.ndarray:
    return np.where(np.arange(samples) // 37 % 2, 2**15 - 1, -(2**15)).astype(np.int16)


# ---- meaning -----------------------------------------------------------------------------------------------------


def float64_features(x: np.ndarray, front: FrontEnd) -> np.ndarray:
    """(frames, bands) log-mel, written down: a matrix of exponentials instead of a fast transform."""
    x = x.astype(np.float64) / 2**15
    p = np.concatenate([x[:1], x[1:] - front.preemphasis * x[:-1]])
    p = np.pad(p, front.fft // 2, **({"mode": "reflect"} if front.padding == "reflect" else {}))
    at = np.arange(front.frames(len(x)))[:, None] * front.hop + np.arange(front.fft)
    k = np.arange(front.fft // 2 + 1)
    turns = np.exp(-2j * np.pi * (np.arange(front.fft)[:, None] * k % front.fft) / front.fft)
    left = (front.fft - front.window) // 2
    window = np.zeros(front.fft)
    window[left : left + front.window] = np.hanning(front.window)
    power = np.abs((p[at] * window) @ turns) ** 2 @ mel_filters(front).T
    return np.log(power + front.guard if front.guard_kind == "add" else np.maximum(power, front.guard))


def decibels(signal: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10((signal**2).sum() / ((signal - other) ** 2).sum())


def network(front: FrontEnd, longest: int = 0) -> Graph:
    attrs, constants, scale = log_mel_node_parts(front)
    samples = Value("samples", ("n", "s"), "int16", *DTYPE_RANGE["int16"], longest=longest)
    lengths = Value("lengths", ("n",), "int32", 1, 2**31 - 1)
    parts = {"attrs": attrs, "constants": constants}
    node = make_node("log_mel", "features", (samples, lengths), dtype="int16", scale=scale, **parts)
    return Graph((samples, lengths), (node,), ("features",))


def integer_features(x: np.ndarray, graph: Graph) -> np.ndarray:
    (y,) = reference.run(graph, x[None], np.array([len(x)], np.int32))
    return y[0] * graph.values["features"].scale


@pytest.fixture(scope="module")
def graphs() -> dict[str, Graph]:
    return {name: network(front) for name, front in FRONT_ENDS.items()}


@pytest.mark.parametrize("name", FRONT_ENDS)
@pytest.mark.parametrize(("signal", "least"), [(vowels, 80), (chirp, 80), (square, 75)])
def test_integers_are_the_features_of_float64(graphs, name, signal, least):
    x = signal()
    exact = float64_features(x, FRONT_ENDS[name])
    assert decibels(exact, integer_features(x, graphs[name])) >= least


@pytest.mark.parametrize("name", FRONT_ENDS)
@pytest.mark.parametrize("signal", [vowels, chirp])
def test_integers_are_the_features_of_torch(graphs, name, signal):
    x, front = signal(), FRONT_ENDS[name]
    real = torch.from_numpy(x).float() / 2**15
    p = torch.cat([real[:1], real[1:] - front.preemphasis * real[:-1]])
    window = torch.hann_window(front.window, periodic=False)
    shape = (front.fft, front.hop, front.window, window)
    spectrum = torch.stft(p, *shape, center=True, pad_mode=front.padding, return_complex=True)
    power = torch.from_numpy(mel_filters(front)).float() @ spectrum.abs().square()
    features = torch.log(power + front.guard).T.numpy()[: front.frames(len(x))]
    assert decibels(features, integer_features(x, graphs[name])) >= 60
    ours = torch.ops.intq.log_mel(real[None], front.to_json())[0].numpy()
    np.testing.assert_allclose(ours, features, atol=5e-3)  # float32 against float32


@pytest.mark.parametrize("kind", ["add", "clamp"])
def test_silence_is_the_guard(kind):
    front = replace(CITRINET, guard_kind=kind)
    graph = network(front)
    silent = integer_features(np.zeros(4000, np.int16), graph)
    assert np.ptp(silent) == 0 and abs(silent[0, 0] - np.log(front.guard)) <= 2**-10
    quiet = (np.random.default_rng(0).integers(-1, 2, 4000)).astype(np.int16)
    np.testing.assert_allclose(integer_features(quiet, graph), float64_features(quiet, front), atol=0.02)


def test_a_quieter_guard_and_other_windows():
    """Where the guard is far below the usual one, what decides is the transform's own rounding."""
    for front in (
        replace(CITRINET, guard=1e-9, guard_kind="clamp"),
        replace(CITRINET, mel_scale="htk", mel_norm=None),
    ):
        graph = network(front)
        for x in (vowels(), chirp()):
            assert decibels(float64_features(x, front), integer_features(x, graph)) >= 60


def test_a_single_sample():
    graph = network(EARLY)
    for value in (-(2**15), 1, 2**15 - 1):
        x = np.array([value], np.int16)
        assert integer_features(x, graph).shape == (1, 64)
        exact = float64_features(x, replace(EARLY, padding="constant"))  # nothing to reflect
        np.testing.assert_allclose(integer_features(x, graph), exact, atol=0.01)
    (none,) = reference.run(network(QUARTZNET), np.ones((2, 1), np.int16), np.ones(2, np.int32))
    assert none.shape == (2, 0, 64)


def test_the_loudest_of_each_frequency_stays_within_reach():
    """Full scale in phase with a bin's real or imaginary part: nothing is larger there, and the reference checks it."""
    front = FrontEnd(16000, window=64, hop=64, fft=64, bands=6, window_kind="rectangular", extra_frame=True)
    graph = network(front)
    j, rows = np.arange(64), []
    for k in range(33):
        for phase in (0, np.pi / 2):
            wave = np.sign(np.cos(2 * np.pi * k * j / 64 + phase + 1e-9))
            for shift in (0, 32):
                rows.append(np.where(np.roll(wave, shift) > 0, 2**15 - 1, -(2**15)))
    x = np.tile(np.array(rows, np.int16), (1, 3))
    (y,) = reference.run(graph, x, np.full(len(x), x.shape[1], np.int32))
    exact = np.stack([float64_features_of(row, front) for row in x])
    np.testing.assert_allclose(y * 2.0**-10, exact, atol=0.02)


def float64_features_of(x: np.ndarray, front: FrontEnd) -> np.ndarray:
    """With the front end's own window."""
    real = torch.from_numpy(x).double()[None] / 2**15
    return torch.ops.intq.log_mel(real, front.to_json())[0].numpy()


# ---- batches -----------------------------------------------------------------------------------------------------

small_fronts = st.builds(
    lambda padding, extra, hop, window: replace(SMALL, padding=padding, extra_frame=extra, hop=hop, window=window),
    st.sampled_from(["constant", "reflect"]),
    st.booleans(),
    st.integers(1, 40),
    st.integers(3, 32),
)


@settings(max_examples=40)
@given(small_fronts, st.lists(st.integers(1, 90), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_a_row_of_a_batch_is_what_it_is_alone(front, lengths, seed):
    rng, most = np.random.default_rng(seed), max(lengths)
    x = rng.integers(-(2**15), 2**15, (len(lengths), most)).astype(np.int16)  # noise beyond the lengths too
    graph, module = network(front), LogMel(replace(front, normalize="none"))
    (batch,) = reference.run(graph, x, np.array(lengths, np.int32))
    real = module(torch.from_numpy(x).double() / 2**15, torch.tensor(lengths)).transpose(1, 2).numpy()
    silence = np.rint(np.log(front.guard) * 2**10)
    for i, length in enumerate(lengths):
        (alone,) = reference.run(graph, x[i : i + 1, :length], np.array([length], np.int32))
        frames = alone.shape[1]
        assert frames == front.frames(length) == dims.size(front.frames("s"), {"s": length})
        np.testing.assert_array_equal(batch[i, :frames], alone[0])
        assert np.abs(batch[i, frames:] - silence).max(initial=0) <= 1
        np.testing.assert_allclose(batch[i, :frames] * 2.0**-10, real[i, :frames], atol=0.02)
        assert not real[i, frames:].any()


def test_normalised_rows_of_a_batch_are_what_they_are_alone():
    module, x = LogMel(EARLY), torch.from_numpy(np.stack([vowels(1.0), vowels(1.0, seed=1)])).float() / 2**15
    batch = module(x, torch.tensor([16000, 9001]))
    alone = module(x[1:, :9001])
    torch.testing.assert_close(batch[1, :, : alone.shape[2]], alone[0], rtol=1e-4, atol=1e-4)
    assert not batch[1, :, alone.shape[2] :].any()
    torch.testing.assert_close(alone.mean(2), torch.zeros(1, 64), rtol=0, atol=1e-4)
    torch.testing.assert_close(alone.std(2), torch.ones(1, 64), rtol=1e-3, atol=0)


@given(st.integers(1, 2**31 - 1), st.integers(-5000, 5000), st.integers(1, 2000))
def test_masks_are_exact_for_every_length(length, add, divide):
    count = (length + add) // divide
    numbers = np.clip(np.array([count - 1, count, count + 1]), 1, 2**31 - 1)
    operands = (np.array([[length]], np.int32), numbers[None].astype(np.int32))
    from intq.ops import OPS

    got = OPS["frame_mask"].body(NumpyDialect, operands, {}, {"add": add, "divide": divide})
    assert got.tolist() == [(numbers <= count).astype(int).tolist()]


# ---- normalisation -----------------------------------------------------------------------------------------------


def normalisation(channels: int, longest: int, scale: float = 8 / 255, x_scale: float = 2.0**-10, **own) -> Graph:
    x = Value("x", ("n", "s", channels), "int16", *DTYPE_RANGE["int16"], longest=longest)
    mask = Value("mask", ("n", "s"), "uint8", 0, 1, longest=longest)
    own = {"gamma": np.ones(channels), "beta": np.zeros(channels)} | own
    attrs, constants = normalize_parts(x_scale, scale=scale, zero_point=128, dtype="uint8", longest=longest, **own)
    parts = {"scale": scale, "zero_point": 128, "attrs": attrs, "constants": constants}
    node = make_node("normalize_frames", "y", (x, mask), dtype="uint8", **parts)
    return Graph((x, mask), (node,), ("y",))


@pytest.mark.parametrize("frames", [2, 3, 50, 1000])
@pytest.mark.parametrize("correction", [0, 1])
def test_frames_are_normalised_to_the_last_step(frames, correction):
    rng = np.random.default_rng(frames)
    graph = normalisation(9, 2000, correction=correction, deviation_epsilon=1e-5)
    x = np.clip(rng.normal(-9, 3, (2, frames, 9)) * 2**10, -(2**15), 2**15 - 1).astype(np.int16)
    mask = np.ones((2, frames), np.uint8)
    mask[1, 2:] = rng.integers(0, 2, frames - 2)
    (y,) = reference.run(graph, x, mask)
    real = torch.ops.intq.normalize_frames(
        torch.from_numpy(x).double() / 2**10, 1e-5, correction, torch.from_numpy(mask).bool()
    )
    wanted = np.clip(real.numpy() * 255 / 8 + 128, 0, 255)
    assert np.abs(y - wanted).max() <= 0.52
    assert (y[mask == 0] == 128).all()


def test_one_frame_no_frame_and_constant_channels_are_zero():
    graph = normalisation(3, 40, correction=1, deviation_epsilon=1e-5)
    x = np.random.default_rng(0).integers(-(2**15), 2**15, (3, 40, 3)).astype(np.int16)
    mask = np.zeros((3, 40), np.uint8)
    mask[0, 7] = 1
    x[2], mask[2] = x[2, 0], 1
    (y,) = reference.run(graph, x, mask)
    assert (y == 128).all()
    real = torch.ops.intq.normalize_frames(torch.from_numpy(x).float(), 1e-5, 1, torch.from_numpy(mask).bool())
    assert real.isfinite().all() and not real[:2].any()


def test_group_norm_over_time():
    """The epsilon in the root, a scale and a shift for each channel: what Wav2Vec2 begins with."""
    rng, channels = np.random.default_rng(1), 7
    gamma, beta = rng.normal(0, 1, channels), rng.normal(0, 1, channels)
    graph = normalisation(channels, 300, gamma=gamma, beta=beta, epsilon=1e-2, x_scale=2.0**-9)
    x = (rng.normal(0, 1, (2, 300, channels)) * rng.uniform(0.01, 3, channels) * 2**9).astype(np.int16)
    (y,) = reference.run(graph, x, np.ones((2, 300), np.uint8))
    real = torch.from_numpy(x).double().transpose(1, 2) / 2**9
    weights = (torch.from_numpy(v) for v in (gamma, beta))
    wanted = torch.nn.functional.group_norm(real, channels, *weights, eps=1e-2).transpose(1, 2).numpy()
    assert np.abs(y - np.clip(wanted * 255 / 8 + 128, 0, 255)).max() <= 0.53


@given(st.integers(1, MOST_FRAMES))
def test_as_many_fractional_bits_as_62_hold(longest):
    bits = mean_bits(longest)
    assert bits == 7 or longest > 2**17
    assert longest * (2 ** (30 + 2 * bits) + 1) < 2**62
    assert bits == 7 or longest * 2 ** (32 + 2 * bits) > 2**61  # one more would not do


@pytest.mark.parametrize("longest", [2**17, 2**17 + 1, 2**19, MOST_FRAMES])
def test_the_longest_signal_is_proven(longest):
    """The reference checks every bound that is proven on paper."""
    graph = normalisation(3, longest, correction=1)
    rng = np.random.default_rng(0)
    x = np.where(rng.integers(0, 2, (1, longest, 3)), 2**15 - 1, -(2**15)).astype(np.int16)
    x[..., 1], x[:, 5, 1] = -(2**15), 2**15 - 1  # the farthest that a frame can be from the others
    x[..., 2], x[:, 5, 2] = 0, 1024  # the same, where roundings weigh most
    (y,) = reference.run(graph, x, np.ones(x.shape[:2], np.uint8))
    for channel in (1, 2):
        assert y[0, 5, channel] == 255 and set(np.unique(y[..., channel])) == {128, 255}


def test_samples_are_normalised_but_for_the_rounding_of_their_mean():
    """A minute of samples into 16 bits, as Wav2Vec2 takes them: from loud speech to what hardly stirs."""
    rng, scale = np.random.default_rng(2), 12 / 2**15
    attrs, constants = normalize_parts(
        2.0**-15, np.ones(1), np.zeros(1), scale, 0, "int16", longest=MOST_FRAMES, epsilon=1e-7
    )
    x = Value("x", ("n", "s", 1), "int16", *DTYPE_RANGE["int16"], longest=MOST_FRAMES)
    mask = Value("mask", ("n", "s"), "uint8", 0, 1, longest=MOST_FRAMES)
    node = make_node("normalize_frames", "y", (x, mask), dtype="int16", attrs=attrs, constants=constants)
    for level in (3000, 100, 4):
        samples = np.clip(np.rint(rng.normal(7.3, level, (1, 960000, 1))), -(2**15), 2**15 - 1).astype(np.int16)
        y = reference.run_node(node, [samples, np.ones((1, 960000), np.uint8)])
        real = samples.astype(np.float64) / 2**15
        deviation = np.sqrt(real.var() + 1e-7)
        mean = 2.0 ** -(15 + mean_bits(MOST_FRAMES) + 1) / deviation  # what its rounding moves all by
        wanted = (real - real.mean()) / deviation
        assert np.abs(y * scale - wanted).max() < scale / 2 + mean + 1e-4 * np.abs(wanted).max()


def test_more_than_the_longest_is_refused():
    with pytest.raises(IntqError, match="longest must lie in"):
        normalisation(2, MOST_FRAMES + 1)


# ---- parts -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 2**62 - 1), min_size=1, max_size=20), st.integers(0, 61))
def test_the_logarithm_is_off_by_less_than_stated(values, shift):
    attrs, constants, _ = log_mel_node_parts(SMALL)
    x = np.array([1, 2**62 - 1, *(max(1, v >> shift) for v in values)])
    got = logarithm(NumpyDialect, x, constants, attrs)
    assert np.abs(got / 2**LOG_BITS - np.log2(x.astype(np.longdouble))).max() < 2**-14


def test_mel_filters_are_those_of_librosa():
    """Numbers of librosa 0.11's ``filters.mel``."""
    slaney = mel_filters(QUARTZNET)
    np.testing.assert_allclose(slaney[9, 14:17], [0.009216606617, 0.019370187074, 0.004858904518], rtol=1e-6)
    np.testing.assert_allclose(slaney[63, 243:246], [0.00248984620, 0.00273002149, 0.00251847156], rtol=1e-6)
    assert np.count_nonzero(slaney[63]) == 23
    htk = mel_filters(FrontEnd(8000, 200, 80, 256, 23, 100.0, 3800.0, mel_scale="htk", mel_norm=None))
    np.testing.assert_allclose(htk[9, 29:32], [0.6777678729, 0.9516767263, 0.7900787592], rtol=1e-6)
    np.testing.assert_allclose(htk.sum(1)[[0, 22]], [2.0071027, 9.650351], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "function"),
    [("hann", torch.hann_window), ("hamming", torch.hamming_window), ("blackman", torch.blackman_window)],
)
def test_windows_are_those_of_torch(kind, function):
    for periodic in (False, True):
        front = replace(CITRINET, window_kind=kind, periodic=periodic)
        wanted = function(400, periodic=periodic, dtype=torch.float64).numpy()
        np.testing.assert_allclose(window_of(front)[56:456], wanted, atol=1e-12)
        assert not window_of(front)[:56].any() and not window_of(front)[456:].any()


def test_export_keeps_the_features_whole():
    model, example = LogMel(QUARTZNET), torch.zeros(2, 4000)
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(model, (example,), dynamic_shapes=((dynamic, dynamic),))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls[:2] == ["intq.log_mel.default", "intq.normalize_frames.default"]
    x = torch.randn(3, 7777) / 8
    torch.testing.assert_close(program.module()(x), model(x))
    for lengths in (None, torch.tensor([4000, 300])):
        torch.library.opcheck(torch.ops.intq.log_mel, (example, QUARTZNET.to_json(), lengths))
    frames = torch.randn(2, 9, 3)
    for mask in (None, frames[..., 0] > 0):
        torch.library.opcheck(torch.ops.intq.normalize_frames, (frames, 1e-5, 1, mask))


# ---- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sample_rate": 0}, "sample_rate must be a positive number"),
        ({"window": 513}, "window must be 3 to fft = 512 samples, found 513"),
        ({"hop": 0}, "hop must be"),
        ({"fft": 392}, "fft must be a multiple of 4 from 16 to 2048 .*, found 392"),
        ({"bands": 0}, "bands must be a positive"),
        ({"bands": 400}, "bands must leave each band a frequency"),
        ({"low_hz": -1.0}, "low_hz must be a frequency below 8000"),
        ({"high_hz": 9000.0}, "high_hz must be .* up to 8000"),
        ({"window_kind": "kaiser"}, "window_kind must be one of hann"),
        ({"preemphasis": 1.5}, "preemphasis must be"),
        ({"guard": 0.0}, "guard must be"),
        ({"guard_kind": "max"}, "guard_kind must be add or clamp"),
        ({"normalize": "all_features"}, "normalize must be per_feature or none"),
        ({"padding": "wrap"}, "padding must be constant or reflect"),
        ({"mel_norm": "area"}, "mel_norm must be"),
        ({"mel_scale": "bark"}, "mel_scale must be"),
        ({"magnitude_power": 1.0}, "magnitude_power must be 2"),
    ],
)
def test_a_front_end_that_cannot_be_is_named_by_its_field(fields, says):
    with pytest.raises(IntqError, match=says):
        replace(QUARTZNET, **fields)


def test_a_front_end_survives_json():
    for front in FRONT_ENDS.values():
        assert FrontEnd.from_json(front.to_json()) == front
    for text, says in [
        ("{", "expected JSON"),
        ("[1]", "expected the fields"),
        (json.dumps({"hops": 3}), "hops"),
        ("{}", "a field is missing"),
        (QUARTZNET.to_json().replace("512", '"512"'), "missing or of another type"),
    ]:
        with pytest.raises(IntqError, match=says):
            FrontEnd.from_json(text)


def test_a_guard_below_the_integers_is_refused():
    with pytest.raises(IntqError, match="guard must be at least"):
        log_mel_node_parts(replace(CITRINET, guard=1e-20))
