"""Explanations in another domain: against numpy, PyWavelets, and what holds for any transform."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxplain as jxp
from jaxplain import JaxplainError
from jaxplain.transformed import (
    Transform,
    bands,
    fourier,
    frequencies,
    group_sum,
    in_domain,
    leaf_groups,
    linear,
    nonnegative,
    transformed,
    wavelets,
)
from tests.helpers import close, quick_compile, total

HAAR = np.array([[1, 1], [-1, 1]]) / np.sqrt(2)
ROOT = np.sqrt(3)
DB2 = np.array([1 - ROOT, 3 - ROOT, 3 + ROOT, 1 + ROOT]) / (4 * np.sqrt(2))  # Daubechies, 1988
DB2 = np.array([DB2, DB2[::-1] * [-1, 1, -1, 1]])
IDENTITY = Transform(lambda x: x, lambda s: s)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def rotation(size):
    return np.linalg.qr(draw(size, size, seed=5))[0]


EXACT = {  # a transform that loses nothing, and the shape that it is for
    "fourier even": (fourier(8), (8,)),
    "fourier odd": (fourier(9), (9,)),
    "fourier 2-D": (fourier((3, 4)), (3, 4, 2)),
    "wavelets": (wavelets(8, DB2), (8,)),
    "wavelets zero": (wavelets(9, DB2, mode="zero"), (9,)),
    "wavelets 2-D": (wavelets((6, 7), HAAR, levels=1, mode="periodic"), (6, 7)),
    "linear": (linear(rotation(6).reshape(6, 2, 3), offset=draw(2, 3)), (2, 3)),
}


@pytest.fixture(autouse=True)
def quick():
    with quick_compile():
        yield


exact = pytest.mark.parametrize("name", EXACT)


def network(shape, outputs=()):
    """A smooth function of x and the example, in the default dtype."""
    size = int(np.prod(shape))
    a, b, c = draw(size, 6) / size**0.5, draw(6), draw(6, *outputs, seed=1)

    def f(x):
        return jnp.tanh(x.reshape(-1) @ jnp.asarray(a, x.dtype) + b.astype(x.dtype)) @ jnp.asarray(
            c, x.dtype
        )

    return f, jnp.asarray(draw(*shape, seed=2))


@exact
def test_the_domains_agree_on_the_total_of_integrated_gradients(x64, name):
    """3 nodes leave a gap of the same size in both domains: the path is the same one."""
    transform, shape = EXACT[name]
    f, x = network(shape)
    explain = partial(jxp.integrated_gradients, steps=3)

    @jax.jit
    def both(x):
        zero = transform.inverse(jax.tree.map(jnp.zeros_like, transform.forward(x)))
        return transformed(explain, transform)(f, x), explain(f, x, baseline=zero)

    there, here = both(x)
    assert total(there.scores) == pytest.approx(total(here.scores), rel=1e-12)
    close(there.output, here.output)
    # Their rounding stands out against the gap, which is 1e-6 of the total.
    np.testing.assert_allclose(there.gap, here.gap, rtol=0, atol=1e-13)
    assert abs(there.gap) > 1e-9


@exact
def test_scores_of_a_linear_function_are_coefficient_times_transposed_inverse(x64, name):
    transform, shape = EXACT[name]
    w, x = draw(*shape, seed=3), jnp.asarray(draw(*shape, seed=2))
    f = lambda x: jnp.sum(w * x)

    @jax.jit
    def both(x):
        s, rebuild = ravel_pytree(transform.forward(x))
        zero = transform.inverse(rebuild(0 * s))
        columns = jax.vmap(lambda one: transform.inverse(rebuild(one)) - zero)(jnp.eye(len(s)))
        want = rebuild(s * jnp.tensordot(columns, w, w.ndim))
        return transformed(jxp.input_x_gradient, transform)(f, x).scores, want

    close(*both(x))


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "smoothgrad"])
def test_identity_gives_the_method_itself(key, method):
    f, x = network((7,))
    method = jxp.METHODS[method].function
    explain = lambda method: jax.jit(lambda x: method(f, x, key=key)[:2])(x)
    close(explain(transformed(method, IDENTITY)), explain(method))


def test_identity_gives_group_scores_themselves():
    f, x = network((7,), (2,))
    masks = np.eye(7, dtype=bool)
    explain = lambda method: jax.jit(lambda x: method(f, x, masks))(x)
    close(explain(transformed(jxp.group_scores, IDENTITY)), explain(jxp.group_scores))


LOSSY = {
    "components": (linear(rotation(8)[:3], offset=draw(8)), (8,)),
    "parts": (nonnegative(np.abs(draw(3, 8))), (8,)),
    "first frequencies": (
        Transform(
            lambda x: fourier(8).forward(x)[:2],
            lambda s: fourier(8).inverse(jnp.pad(s, [(0, 3), (0, 0)])),
        ),
        (8,),
    ),
}


@pytest.mark.parametrize("name", LOSSY)
def test_the_residual_keeps_f_of_x(name):
    transform, shape = LOSSY[name]
    f, x = network(shape)
    g, s = in_domain(f, x, transform)
    # In float32, of values up to 4: a few of their roundings.
    assert float(g(s)) == pytest.approx(float(f(x)), abs=1e-6)
    back = transform.inverse(s)
    assert np.abs(back - x).max() > 0.1
    g, _ = in_domain(f, x, transform, residual=False)
    assert float(g(s)) == pytest.approx(float(f(back)), abs=1e-6)
    assert abs(float(f(back) - f(x))) > 0.01
    a = jax.jit(partial(transformed(jxp.input_x_gradient, transform), f))(x)
    assert a.scores.shape == s.shape and float(a.output) == pytest.approx(float(f(x)), abs=1e-6)


def test_the_residual_is_held_constant_under_a_gradient_with_respect_to_x():
    transform, _ = LOSSY["components"]
    f, x = network((8,))
    value, slope = jax.value_and_grad(lambda x: in_domain(f, x, transform)[0](jnp.ones(3)))(x)
    assert value != 0 and not slope.any()


def test_a_tree_of_arrays_and_a_pair_of_ones_own():
    both = Transform(
        lambda x: {"spectrum": fourier(6).forward(x["signal"]), "age": x["age"]},
        lambda s: {"signal": fourier(6).inverse(s["spectrum"]), "age": s["age"]},
    )
    f = lambda x: jnp.tanh(jnp.sum(x["signal"] ** 2)) * x["age"]
    x = {"signal": jnp.asarray(draw(6) / 3), "age": jnp.float32(2)}
    a = jax.jit(partial(transformed(jxp.integrated_gradients, both), f))(x)
    assert a.scores["spectrum"].shape == (4, 2)
    # The sum of 8 float32 scores, of a size of 1.
    assert total(a.scores) == pytest.approx(float(f(x)), abs=1e-5)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((8,), None),
        ((9, 2), None),
        ((5, 6, 2), (0, 1)),
        ((6, 5), (1, 0)),
        ((2, 7), (-1,)),
        ((1,), None),
    ],
)
def test_fourier_is_numpys(x64, shape, axes):
    lengths = shape[:1] if axes is None else tuple(shape[a] for a in axes)
    x, transform = draw(*shape), fourier(lengths, axes=axes)
    s, back = jax.jit(lambda x: (transform.forward(x), transform.inverse(transform.forward(x))))(x)
    want = np.fft.rfftn(x, axes=axes or (0,))
    close(s, np.stack([want.real, want.imag], -1))
    close(back, x)
    masks = bands(lengths, 1, axes=axes, ndim=len(shape))
    assert np.broadcast_shapes(masks.shape[1:], s.shape) == s.shape


WAVELETS = [  # lengths, name, mode, levels
    (16, "db2", "periodization", 2),
    (13, "sym5", "periodization", 2),
    (3, "db4", "periodization", 3),
    (13, "bior2.2", "periodization", 1),
    (13, "db2", "periodic", 3),
    (5, "coif1", "periodic", 2),
    (12, "bior1.3", "periodic", 1),
    (13, "db2", "zero", 3),
    (1, "rbio3.1", "zero", 1),
    (20, "haar", "zero", 2),
    ((8, 12), "db2", "periodization", 2),
    ((7, 9), "db3", "periodization", 1),
    ((7, 8), "bior2.2", "periodic", 1),
    ((9, 6), "db2", "zero", 2),
]


@pytest.mark.parametrize(
    ("lengths", "name", "mode", "levels", "dtype"),
    [(*case, "f8") for case in WAVELETS] + [(*case, "f4") for case in WAVELETS[::9]],
)
@pytest.mark.filterwarnings("ignore:Level value:UserWarning")  # PyWavelets, of a high level
def test_wavelets_are_pywavelets(x64, lengths, name, mode, levels, dtype):
    pywt = pytest.importorskip("pywt", reason="pip install PyWavelets to compare with it")
    transform = wavelets(lengths, name, levels=levels, mode=mode, axes=(1, 2)[: np.size(lengths)])
    x = draw(2, *np.atleast_1d(lengths))
    if np.size(lengths) == 1:
        split = partial(pywt.wavedec, wavelet=name, mode=mode, level=levels, axis=1)
        merge = partial(pywt.waverec, wavelet=name, mode=mode, axis=1)
    else:
        split = partial(pywt.wavedec2, wavelet=name, mode=mode, level=levels, axes=(1, 2))
        merge = partial(pywt.waverec2, wavelet=name, mode=mode, axes=(1, 2))
    want = split(x)
    other = jax.tree.map(lambda v: draw(*v.shape, seed=4), want)  # of no signal at all

    @jax.jit
    def both(x, other):
        got = transform.forward(x)
        return got, transform.inverse(other), transform.inverse(got)

    cast = lambda tree: jax.tree.map(lambda v: jnp.asarray(v, dtype), tree)
    got, signal, back = both(cast(x), cast(other))
    # 1e-12 and 1e-6 are some tens of roundings of values up to 10.
    atol = {"f8": 1e-12, "f4": 1e-6}[dtype] * 5
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)
    inside = tuple(slice(n) for n in x.shape)
    np.testing.assert_allclose(signal, merge(other)[inside], rtol=0, atol=atol)
    np.testing.assert_allclose(back, x, rtol=0, atol=atol)


def test_wavelets_by_name_and_by_filters_are_the_same():
    pywt = pytest.importorskip("pywt", reason="pip install PyWavelets for the names")
    x = jnp.asarray(draw(11))
    split = lambda filters: jax.jit(wavelets(11, filters).forward)(x)
    assert len(split("db2")) == 1 + pywt.dwt_max_level(11, 4)
    close(split(DB2), split("db2"))
    close(split(pywt.Wavelet("db2").filter_bank), split("db2"))


def test_a_wavelet_name_without_pywavelets_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pywt", None)
    with pytest.raises(JaxplainError, match="pip install PyWavelets, or give the filters"):
        wavelets(8, "db2")
    wavelets(8, DB2)


def test_orthonormal_wavelets_keep_the_norm(x64):
    x = jnp.asarray(draw(16, 8))
    s = jax.jit(wavelets((16, 8), DB2, levels=3).forward)(x)
    assert sum(float(jnp.sum(v**2)) for v in jax.tree.leaves(s)) == pytest.approx(
        float(jnp.sum(x**2)), rel=1e-12
    )


def test_linear_of_orthonormal_atoms_is_principal_components(x64):
    atoms, mean, x = rotation(8)[:3], draw(8), draw(8, seed=2)
    close(linear(atoms, offset=mean).forward(jnp.asarray(x)), (x - mean) @ atoms.T)
    close(linear(atoms, offset=mean).inverse(jnp.arange(3.0)), np.arange(3.0) @ atoms + mean)


def test_nonnegative_is_scipys(x64):
    optimize = pytest.importorskip("scipy.optimize")
    atoms, x = np.abs(draw(4, 9)), draw(9, seed=2)
    want = optimize.nnls(atoms.T, x)[0]
    assert (want > 0).any() and (want == 0).any()
    got = nonnegative(atoms.reshape(4, 3, 3)).forward(jnp.asarray(x.reshape(3, 3)))
    # What 500 steps leave; they converge as a power of 1 / steps at the worst.
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_frequencies_are_in_cycles_per_sample():
    t = np.arange(20)
    wave = np.cos(2 * np.pi * 0.15 * t)
    power = (np.asarray(fourier(20).forward(jnp.asarray(wave))) ** 2).sum(-1)
    assert frequencies(20)[power.argmax()] == pytest.approx(0.15)
    grid = np.hypot(*np.meshgrid(np.fft.fftfreq(5), np.fft.rfftfreq(6), indexing="ij"))
    np.testing.assert_allclose(frequencies((5, 6)), grid, atol=1e-15)


@pytest.mark.parametrize(
    ("lengths", "axes", "ndim"), [((8,), None, None), ((9, 6), None, 3), ((6, 5), (2, 0), 3)]
)
def test_bands_hold_every_coefficient_once(lengths, axes, ndim):
    masks = bands(lengths, 3, axes=axes, ndim=ndim)
    assert masks.shape[0] == 3 and (masks.sum(0) == 1).all()
    assert masks.size == 3 * frequencies(lengths).size
    radius = frequencies(lengths)
    spread = np.moveaxis(radius, 0, -1) if axes == (2, 0) else radius
    means = [np.broadcast_to(spread.reshape(masks.shape[1:]), m.shape)[m].mean() for m in masks]
    assert means == sorted(means)


def test_bands_of_edges_and_of_pairs():
    one, pair = bands(8, [0.1, 0.25, 0.5]), bands(8, [[0.1, 0.25], [0.2, 0.5]])
    assert one[..., 0].astype(int).tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 1, 1]]
    assert pair[..., 0].astype(int).tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 1, 0]]


def test_a_published_band_in_our_units():
    """TRIM's band mask, shifted and on the full spectrum: centre .5, width .2, of the highest."""
    n = 12
    axis = np.fft.fftshift(np.fft.fftfreq(n))
    top = axis.max()
    distance = np.hypot(*np.meshgrid(axis / top, axis / top, indexing="ij"))
    want = np.fft.ifftshift((distance > 0.3) & (distance < 0.7))[:, : n // 2 + 1]
    got = bands((n, n), [(0.3 * top, 0.7 * top)])
    np.testing.assert_array_equal(got[0, ..., 0], want)


def test_contextual_decomposition_of_a_band_is_that_of_the_signals_part(x64):
    """The published rules by hand: the filtered signal goes through, the rest beside it."""
    n, hidden = 10, 7
    a, b, c = draw(n, hidden), draw(hidden), draw(hidden, 2, seed=1)
    x = draw(n, seed=2)
    f = lambda x: jax.nn.relu(x @ jnp.asarray(a) + jnp.asarray(b)) @ jnp.asarray(c)
    masks = bands(n, 3)
    explain = partial(transformed(jxp.group_scores, fourier(n)), rules=jxp.CD_ACD)
    got = jax.jit(lambda x: explain(f, x, masks))(jnp.asarray(x))
    for g, mask in enumerate(masks):
        relevant = np.fft.irfft(np.fft.rfft(x) * mask[:, 0], n) @ a
        rest = x @ a - relevant
        relevant = relevant + b * np.abs(relevant) / (np.abs(relevant) + np.abs(rest))
        np.testing.assert_allclose(got.relevant[g], np.maximum(relevant, 0) @ c, atol=1e-12)
        np.testing.assert_allclose((got.relevant + got.irrelevant)[g], f(x), atol=1e-12)


@exact
def test_every_table_has_rules_for_the_inverses(name):
    transform, shape = EXACT[name]
    s = jax.eval_shape(transform.forward, jnp.zeros(shape))
    s = jax.tree.map(lambda v: np.zeros(v.shape, v.dtype), s)
    for rules in (jxp.CD_ACD, jxp.CD_SHAPLEY, jxp.CD_LSTM, jxp.CD_TRANSFORMER):
        assert jxp.missing(transform.inverse, s, rules) == []


def test_contextual_decomposition_of_scales_adds_up():
    transform, shape = EXACT["wavelets 2-D"]
    f, x = network(shape, (2,))
    masks = leaf_groups(jax.eval_shape(transform.forward, x))
    got = jax.jit(lambda x: transformed(jxp.group_scores, transform)(f, x, masks))(x)
    assert got.relevant.shape == (4, 2)
    close(got.relevant + got.irrelevant, jnp.broadcast_to(f(x), (4, 2)))


def test_group_sum_is_one_signed_sum_for_all():
    scores = {"a": jnp.asarray(draw(5, 2)), "b": [jnp.asarray(draw(3))]}
    masks = {"a": draw(4, 5, 1, seed=1), "b": [draw(4, 3, seed=2)]}
    want = (np.array(scores["a"]) * masks["a"]).sum((1, 2)) + masks["b"][0] @ scores["b"][0]
    close(jax.jit(group_sum)(scores, masks), want)
    leaves = [total(scores["a"]), total(scores["b"])]
    close(jax.jit(group_sum)(scores, leaf_groups(scores)), np.array(leaves))


def test_group_sums_of_a_partition_keep_completeness(x64):
    f, x = network((12,))
    a = jax.jit(partial(transformed(jxp.integrated_gradients, fourier(12)), f))(x)
    parts = group_sum(a.scores, bands(12, 4))
    assert parts.shape == (4,) and float(parts.sum()) == pytest.approx(total(a.scores), rel=1e-12)


@pytest.mark.parametrize("name", ["fourier odd", "wavelets zero", "linear"])
def test_a_batch_equals_its_examples(name):
    transform, shape = EXACT[name]
    f, _ = network(shape)
    xs = jnp.asarray(draw(3, *shape, seed=6))
    explain = partial(transformed(jxp.input_x_gradient, transform), f)
    batch = jax.jit(jax.vmap(explain))(xs)
    one = explain(xs[1]) if name == "linear" else jax.jit(explain)(xs[1])  # eager is slow
    # Of magnitudes that cancel in the transform: to the largest of all.
    close(jax.tree.map(lambda v: v[1], batch.scores), one.scores, factor=3)
    close(batch.output[1], f(xs[1]))


def test_half_precision_is_transformed_in_float32():
    f = lambda x: jnp.sum(x * x)
    x = jnp.asarray(draw(8), jnp.bfloat16)
    for transform in (fourier(8), wavelets(8, HAAR, levels=1)):
        a = jax.jit(partial(transformed(jxp.input_x_gradient, transform), f))(x)
        assert {v.dtype for v in jax.tree.leaves(a.scores)} == {jnp.dtype("f4")}
        close(a.output, f(x))


X = jnp.ones(8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fourier(7).forward(X), r"made for lengths \[7\] along axes \[0\], and x has"),
        (lambda: fourier((8, 2)).forward(X), r"along axes \[0, 1\], and x has shape \[8\]"),
        (lambda: fourier(8).forward({"a": X}), "takes one array, and x is {'a': "),
        (lambda: fourier((8, 2), axes=(0,)), "must pair up, 1 to 3 of each"),
        (lambda: wavelets((2, 2, 2), HAAR), "must pair up, 1 to 2 of each"),
        (lambda: fourier(0), "each of lengths must be a whole number of at least 1, not 0"),
        (lambda: bands(8, [0.3, 0.1]), "edges must rise"),
        (lambda: bands(8, [0, 0.01, 0.02]), r"no frequency lies in band 1, \[0.01, 0.02\] cycles"),
        (lambda: bands(8, 0), "edges must be a whole number of at least 1"),
        (lambda: bands(8, 2, axes=(2,)), "set ndim, which is 1"),
        (
            lambda: wavelets(8, HAAR, mode="mirror"),  # pyright: ignore[reportArgumentType]
            "periodization, periodic or zero, not 'mirror'",
        ),
        (lambda: wavelets(8, HAAR, levels=0), "levels must be a whole number of at least 1"),
        (lambda: wavelets(8, [[1.0, 0, 1]] * 2), "2 or 4 arrays of one even length"),
        (lambda: wavelets(8, [[1.0, 0], [1.0, 0, 0]]), "2 or 4 arrays of one even length"),
        (lambda: wavelets(8, 2 * HAAR), "two filters must be orthonormal"),
        (lambda: wavelets(8, HAAR).forward(jnp.ones(9)), r"and x has shape \[9\]"),
        (lambda: linear([1.0, 2.0]), r"atoms must be \[K, ...\], K arrays like x, not \[2\]"),
        (lambda: linear(np.eye(8), offset=[1.0, 2]), r"offset has shape \[2\], and atoms \[8\]"),
        (lambda: linear(np.eye(8)).forward(jnp.ones((8, 1))), r"and x has shape \[8, 1\]"),
        (lambda: nonnegative(np.eye(8), steps=0), "steps must be a whole number of at least 1"),
        (lambda: in_domain(jnp.sum, jnp.arange(8), IDENTITY), "x is int32, and only floats"),
        (
            lambda: in_domain(jnp.sum, X, Transform(jnp.fft.rfft, jnp.fft.irfft)),
            r"forward\(x\) is complex64, .* as two real parts",
        ),
        (
            lambda: in_domain(jnp.sum, X, Transform(lambda x: x, lambda s: s[:7])),
            r"inverse\(forward\(x\)\) is \[7\] and x is \[8\]",
        ),
        (lambda: group_sum(X, jnp.ones((2, 7))), "each group has shape"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(JaxplainError, match=message):
        call()


def test_an_unknown_wavelet_is_refused():
    pytest.importorskip("pywt", reason="pip install PyWavelets for the names")
    with pytest.raises(JaxplainError, match="PyWavelets knows no discrete wavelet 'db200'"):
        wavelets(8, "db200")
