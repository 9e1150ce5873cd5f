"""What converts models that others wrote, on small files made here: nothing is downloaded."""

import io
import json
import pickle
import struct
import zipfile
from typing import Any

import jax
import numpy as np
import pytest

from examples import foreign_lstm as lstm
from examples import foreign_mobilenet as mobilenet
from jaxplain.run import own

D, U, V = 3, 2, 9  # width of a word, of the state, words and an empty one


@pytest.fixture(scope="module")
def keras():
    """A Keras file of the package's layout, and the arrays in it."""
    h5py = pytest.importorskip("h5py")
    draw = np.random.default_rng(0)
    arrays = {
        "embedding/embedding/embeddings:0": draw.normal(size=(V, D)),
        "lstm/lstm/lstm_cell/kernel:0": draw.normal(size=(D, 4 * U)),
        "lstm/lstm/lstm_cell/recurrent_kernel:0": draw.normal(size=(U, 4 * U)),
        "lstm/lstm/lstm_cell/bias:0": draw.normal(size=4 * U),
        "dense/dense/kernel:0": draw.normal(size=(U, 1)),
        "dense/dense/bias:0": draw.normal(size=1),
    }
    arrays["embedding/embedding/embeddings:0"][0] = 0
    file = io.BytesIO()
    with h5py.File(file, "w") as stored:
        for name, value in arrays.items():
            stored[f"model_weights/{name}"] = value.astype(np.float32)
    return file, list(arrays.values())


def test_an_lstm_is_keras(keras):
    file, (words, kernel, recurrent, bias, out, out_bias) = keras
    params = lstm.convert(file)
    sigmoid = lambda v: 1 / (1 + np.exp(-v))
    ids = np.array([3, 1, 8, 5])
    state = cell = np.zeros(U)
    for number in [*ids, *[0] * (lstm.LENGTH - len(ids))]:  # Keras reads the filling, too
        gates = words[number] @ kernel + state @ recurrent + bias
        enter, forget, new, leave = gates.reshape(4, U)  # i, f, c, o
        cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(new)
        state = sigmoid(leave) * np.tanh(cell)
    expected = sigmoid(state @ out + out_bias)[0]
    for length in (7, lstm.LENGTH):
        padded = np.full(length, 2)
        padded[:4] = ids
        mask = np.arange(length) < 4
        logits = jax.jit(lstm.score)(params, lstm.embed(params, padded), mask)
        # float32 through 100 steps, against float64
        np.testing.assert_allclose(jax.nn.softmax(logits)[1], expected, rtol=1e-5)


def test_texts_are_cleaned_as_in_training():
    text = "It's <br /><br />NOT a  Good film; 10/10, y'know! I <b>loved</b> Kane's cast"
    assert lstm.clean(text) == ["good", "film", "know", "loved", "kane", "cast"]
    ids = lstm.number([["b", "a"], ["a", "c"], ["c", "d"]])
    assert ids == {"a": 1, "c": 2, "b": 3, "d": 4}
    short = lstm.tokenize({"good": 7, "film": 2}, "a good unheard-of film")
    assert (short.ids.tolist(), short.pieces, short.truncated) == ([7, 2], ["good", "film"], "")
    long = lstm.tokenize({"good": 7, "film": 2}, "film " * 3 + "good " * lstm.LENGTH)
    assert set(long.pieces) == {"good"} and len(long.ids) == lstm.LENGTH
    assert long.truncated == "only the last 100 of 103 words were read"


def test_the_lstm_goes_where_texts_go(keras, tmp_path, monkeypatch):
    """From a wheel to the command line's contract."""
    monkeypatch.setenv("JAXPLAIN_PACKAGES", str(tmp_path))
    monkeypatch.setattr(lstm, "HELD_OUT", 1)
    lstm.table.cache_clear()
    texts = ["one two three", "four five six", "seven eight"]
    with zipfile.ZipFile(tmp_path / lstm.WHEEL, "w") as wheel:
        wheel.writestr(lstm.WEIGHTS, keras[0].getvalue())
        rows = "".join(f'"{text}",positive\n' for text in texts)
        wheel.writestr(lstm.REVIEWS, "review,sentiment\n" + rows)
    try:
        with pytest.raises(ValueError, match="words, and vectors of 8"):
            lstm.model()  # one review is held out, and its words are in no vocabulary
        ids = {word: place for place, word in enumerate(" ".join(texts).split(), start=1)}
        (tmp_path / "mhlabs_sentiment.json").write_text(json.dumps(ids))
        model = own.load_model("examples.foreign_lstm:model")
        source = own.load_data("examples.foreign_lstm:reviews")
    finally:
        lstm.table.cache_clear()
    assert model.labels == ("negative", "positive")
    assert len(source) == 1 and source[0]["text"] in texts
    assert len(model.tokenize(source[0]["text"]).ids) in (2, 3)  # type: ignore[union-attr]


# --- torch's legacy format, written by hand.


class Fake:
    """A class that pickles as torch's would, by name."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


PythonPickler: Any = pickle._Pickler  # type: ignore[attr-defined]  # it can be taught


class Writer(PythonPickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Held) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Fake):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        else:
            super().save(obj, save_persistent_id)


class Held:
    """A storage, kept by its key."""

    def __init__(self, key: str, kind: str, count: int):
        self.pid = ("storage", Fake("torch", kind), key, "cpu", count, None)


class Rebuilt:
    """A tensor, as `_rebuild_tensor_v2` of a storage."""

    def __init__(self, *args):
        self.args = args

    def __reduce_ex__(self, protocol):
        return Call("torch._utils", "_rebuild_tensor_v2"), (*self.args, False, {})


class Call(Fake):
    def __call__(self):
        raise AssertionError("only its name is written")


def legacy(state: dict, storages: dict[str, np.ndarray]) -> io.BytesIO:
    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, state, list(storages)):
        Writer(file, protocol=2).dump(part)
    for numbers in storages.values():
        file.write(struct.pack("<q", numbers.size) + numbers.tobytes())
    file.seek(0)
    return file


def test_torch_weights_without_torch():
    a, b = np.arange(12, dtype="<f4"), np.array([7], "<i8")
    state = {
        "whole": Rebuilt(Held("k", "FloatStorage", 12), 0, (3, 4), (4, 1)),
        "turned": Rebuilt(Held("k", "FloatStorage", 12), 1, (2, 3), (1, 4)),
        "count": Rebuilt(Held("n", "LongStorage", 1), 0, (), ()),
    }
    found = mobilenet.read_torch(legacy(state, {"n": b, "k": a}))
    np.testing.assert_array_equal(found["whole"], a.reshape(3, 4))
    np.testing.assert_array_equal(found["turned"], a.reshape(3, 4).T[1:3])
    assert found["count"] == 7 and found["count"].dtype == np.int64


def test_nothing_else_is_unpickled():
    storage = {"k": np.zeros(4, "<f4")}
    for module, name in (("os", "system"), ("builtins", "eval"), ("torch", "load")):
        evil = {"a": Fake(module, name)}
        with pytest.raises(pickle.UnpicklingError, match=f"{module}.{name} is no part"):
            mobilenet.read_torch(legacy(evil, storage))
    held = Held("k", "FloatStorage", 4)
    for args in ((held, 2, (3,), (1,)), (held, 0, (2,), (9,)), (held, -1, (1,), (1,))):
        with pytest.raises(pickle.UnpicklingError, match="beyond its storage"):
            mobilenet.read_torch(legacy({"a": Rebuilt(*args)}, storage))
    with pytest.raises(pickle.UnpicklingError, match="holds 4 numbers, not 99"):
        huge = Rebuilt(Held("k", "FloatStorage", 99), 0, (99,), (1,))
        mobilenet.read_torch(legacy({"a": huge}, storage))
    with pytest.raises(pickle.UnpicklingError, match="legacy format"):
        mobilenet.read_torch(io.BytesIO(b"".join(pickle.dumps(n) for n in (1, 2, 3))))


def draw_state(draw) -> dict[str, np.ndarray]:
    """A network with torchvision's names and strides, and few channels."""
    state = {}

    def add(kernel, norm, out, into, size):
        state[f"{kernel}.weight"] = draw.normal(size=(out, into, size, size)) / np.sqrt(into) / size
        for part in ("weight", "bias", "running_mean"):
            state[f"{norm}.{part}"] = draw.normal(size=out) * 0.3 + (part == "weight")
        state[f"{norm}.running_var"] = draw.uniform(0.5, 2, out)

    add("features.0.0", "features.0.1", 4, 3, 3)
    for number in range(1, 18):
        at, width = f"features.{number}.conv", 4 if number < 9 else 5
        into, inner = (5 if number > 9 else 4), 4 if number == 1 else 6
        if number > 1:
            add(f"{at}.0.0", f"{at}.0.1", inner, into, 1)
        depth, last = (f"{at}.0", f"{at}.1") if number == 1 else (f"{at}.1", f"{at}.2")
        norm = f"{at}.2" if number == 1 else f"{at}.3"
        add(f"{depth}.0", f"{depth}.1", inner, 1, 3)
        add(last, norm, width, inner, 1)
    add("features.18.0", "features.18.1", 8, 5, 1)
    state["classifier.1.weight"] = draw.normal(size=(6, 8))
    state["classifier.1.bias"] = draw.normal(size=6)
    return {name: value.astype(np.float32) for name, value in state.items()}


def slow(state, x):
    """The network as torch computes it, `[C, H, W]`, one convolution after the other, in numpy."""

    def conv(kernel, norm, x, stride=1):
        w = state[f"{kernel}.weight"].astype(np.float64)
        out, into, size, _ = w.shape
        pad = size // 2
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
        seen = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
        seen = seen[:, ::stride, ::stride]  # [channels, H, W, size, size]
        by_channel = into == 1 and len(x) == out
        y = np.einsum(
            "chwab,cab->chw" if by_channel else "ihwab,oiab->ohw",
            seen,
            w[:, 0] if by_channel else w,
        )
        scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + 1e-5)
        mean, bias = state[f"{norm}.running_mean"], state[f"{norm}.bias"]
        return (y - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]

    relu6 = lambda v: np.clip(v, 0, 6)
    x = relu6(conv("features.0.0", "features.0.1", x, 2))
    for number, stride in enumerate(mobilenet.STRIDES, start=1):
        at, y = f"features.{number}.conv", x
        if number == 1:
            y = relu6(conv(f"{at}.0.0", f"{at}.0.1", y, stride))
            y = conv(f"{at}.1", f"{at}.2", y)
        else:
            y = relu6(conv(f"{at}.0.0", f"{at}.0.1", y))
            y = relu6(conv(f"{at}.1.0", f"{at}.1.1", y, stride))
            y = conv(f"{at}.2", f"{at}.3", y)
        x = x + y if stride == 1 and len(x) == len(y) else y
    x = relu6(conv("features.18.0", "features.18.1", x)).mean((1, 2))
    return state["classifier.1.weight"] @ x + state["classifier.1.bias"]


def test_the_network_is_torchvisions():
    draw = np.random.default_rng(1)
    state = draw_state(draw)
    x = draw.normal(size=(33, 40, 3)).astype(np.float32)
    params = mobilenet.convert(state)
    assert params["blocks"][0][0]["kernel"].shape == (3, 3, 1, 4)
    got = jax.jit(mobilenet.score)(params, x)
    assert got.shape == (6,)
    # float32 through 53 convolutions with norms folded in, against float64
    np.testing.assert_allclose(got, slow(state, x.transpose(2, 0, 1)), rtol=1e-3, atol=1e-4)


def test_pointing():
    scores = np.zeros((64, 64, 3))
    scores[:32, 32:] = 1
    scores[40, 40] = -5
    assert mobilenet.share(scores, 1) == 1
    scores[:32, :32, 0] = 3
    assert mobilenet.share(scores, 0) == 0.5
    assert mobilenet.share(np.eye(4), 0) == 0.5
