"""The deconvnet example: it finds the strongest activations, and projects to what a unit sees."""

import re
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from examples import deconvnet
from examples.hierarchies_images import digits
from tests.helpers import close, quick_compile

pytestmark = pytest.mark.slow

SIZES = (3, 3, 3)


class Network(NamedTuple):
    model: Any
    params: Any
    images: np.ndarray
    logits: Any
    states: Any  # of each layer [N, h, w, units]


@pytest.fixture(scope="module")
def network():
    images = np.random.default_rng(0).uniform(-1, 1, (21, 12, 12, 1)).astype("f4")
    model = deconvnet.CNN(SIZES)
    with quick_compile():
        params = jax.jit(model.init)(jax.random.key(1), images[0])
        logits, states = jax.jit(jax.vmap(model.apply, (None, 0)))(params, images)
        yield Network(model, params, images, logits, states)


def test_the_strongest_are_found(network):
    model, params, images, want, states = network
    logits, best = deconvnet.strongest(model, params, images, batch=4)  # the last one is not full
    close(logits, want)
    for state, (values, places) in zip(states, best, strict=True):
        close(values, state.max((1, 2)))
        n, units = np.ogrid[: len(images), : state.shape[-1]]
        close(values, np.asarray(state)[n, places[..., 0], places[..., 1], units])


def test_a_projection_stays_in_the_field(network):
    model, params, images, _, states = network
    images, units = images[:8], np.arange(8)
    for layer, field in enumerate(deconvnet.fields(SIZES)):
        side = 12 // deconvnet.POOL**layer
        places = np.random.default_rng(layer).integers(0, side, (8, 2))
        projected = deconvnet.project(model, params, layer, images, units, places)
        scores, outputs = map(np.asarray, projected)
        close(outputs, np.asarray(states[layer])[units, places[:, 0], places[:, 1], units])
        assert np.count_nonzero(outputs) > 2
        for k, place in enumerate(places):
            start = np.maximum(place * field.step + field.first, 0)
            stop = np.maximum(place * field.step + field.first + field.size, 0)
            inside = np.zeros((12, 12), bool)
            inside[start[0] : stop[0], start[1] : stop[1]] = True
            assert not np.any(scores[k][~inside])
            assert np.any(scores[k][inside]) == (outputs[k] > 0)
        # What is cut out is all of it.
        pieces = deconvnet.crop(scores, places, field)
        close(np.nansum(np.abs(pieces), (1, 2)), np.abs(scores).sum((1, 2, 3)))


def test_fields_are_no_larger_than_they_must_be(network):
    model, params, images, *_ = network
    # On both sides of the square there is a pixel that some unit hears.
    for layer, field in enumerate(deconvnet.fields(SIZES[:2])):
        middle = 6 // deconvnet.POOL**layer
        f = lambda x, layer=layer, at=middle: model.apply(params, x)[1][layer][at, at].sum()
        heard = np.any(jax.jit(jax.vmap(jax.grad(f)))(images), axis=(0, 2, 3))
        start = middle * field.step + field.first
        assert np.flatnonzero(heard)[[0, -1]].tolist() == [start, start + field.size - 1]


def test_first_layer_shows_filters(network):
    model, params, images, _, (state, *_) = network
    kernel = np.asarray(params["params"]["Conv_0"]["kernel"])[:, :, 0, 3]
    scores, outputs = deconvnet.project(
        model, params, 0, images[:8], np.full(8, 3), np.full((8, 2), 5)
    )
    values = np.asarray(state)[:8, 5, 5, 3]
    close(outputs, values)
    pieces = deconvnet.crop(np.asarray(scores), np.full((8, 2), 5), deconvnet.fields(SIZES)[0])
    close(pieces, values[:, None, None] * kernel[None])


def watch(monkeypatch, name):
    """Arguments and result of each call that the example makes of its own function."""
    calls, real = [], getattr(deconvnet, name)

    def spy(*args):
        calls.append((args, real(*args)))
        return calls[-1][1]

    monkeypatch.setattr(deconvnet, name, spy)
    return calls


def test_example(optimized, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("JAXPLAIN_DATA", raising=False)  # scikit-learn's digits, 8 pixels a side
    drawn, searched = (watch(monkeypatch, name) for name in ("draw", "strongest"))
    deconvnet.main(out=tmp_path / "run", units=4, epochs=3)
    printed = capsys.readouterr().out
    found = re.search(r"digits: trained on 1437 images .*test accuracy ([\d.]+)% on 360", printed)
    assert found and float(found[1]) > 80  # guessing gives 10%
    images = digits()[1]
    ((_, (_, best)),) = searched
    for (arguments, _), (values, places), field in zip(
        drawn, best, deconvnet.fields(SIZES), strict=True
    ):
        path, _, projections, patches, names = arguments
        assert path.read_bytes().startswith(b"\x89PNG")
        assert projections.shape == patches.shape == (4, 9, field.size, field.size)
        for name, patch in zip(names, patches, strict=True):
            unit = int(name.removeprefix("unit "))
            top = np.argsort(-values[:, unit], kind="stable")[:9]
            assert values[top[-1], unit] >= np.delete(values[:, unit], top).max()
            want = deconvnet.crop(images[top], places[top, unit], field)
            np.testing.assert_array_equal(patch, want)
