"""Laying convolutions out anew changes where they run fast, and nothing that can be observed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxplain as jxp
from jaxplain.interpret import canonical_convolutions

# name: image, kernel, arguments of lax.conv_general_dilated
CONVOLUTIONS = {
    "NCHW": ((2, 3, 6, 5), (4, 3, 3, 2), dict(axes=("NCHW", "OIHW", "NCHW"))),
    "NHWC": ((2, 6, 5, 3), (3, 2, 3, 4), dict(axes=("NHWC", "HWIO", "NHWC"))),
    "mixed": ((3, 5, 2, 6), (2, 4, 3, 3), dict(axes=("CWNH", "WOIH", "HNCW"))),
    "one axis": ((2, 3, 7), (4, 3, 3), dict(axes=("NCH", "OIH", "NCH"), strides=(2,))),
    "three axes": ((1, 2, 4, 3, 4), (3, 2, 2, 2, 2), dict(axes=("NCDHW", "OIDHW", "NDHWC"))),
    "strides": ((2, 3, 7, 6), (4, 3, 3, 3), dict(strides=(2, 3), padding="SAME")),
    "uneven padding": ((2, 3, 6, 5), (4, 3, 3, 3), dict(padding=((2, 0), (-1, 3)))),
    "kernel dilation": ((2, 3, 7, 7), (4, 3, 2, 3), dict(rhs_dilation=(3, 2))),
    "image dilation": (
        (2, 3, 4, 5),
        (4, 3, 3, 2),
        dict(lhs_dilation=(2, 3), padding=((1, 1), (0, 2))),
    ),
    "groups": ((2, 4, 6, 5), (6, 2, 3, 2), dict(feature_group_count=2)),
    "depthwise": ((2, 5, 6, 3), (2, 2, 1, 6), dict(axes=("NHWC", "HWIO", "NHWC"), groups=3)),
    "batch groups": ((4, 3, 6, 5), (6, 3, 3, 2), dict(batch_group_count=2)),
}


def case(name, dtype="float32"):
    """A non-linear function of image and kernel, and both."""
    image, kernel, options = CONVOLUTIONS[name]
    options = dict(options)
    if groups := options.pop("groups", None):
        options["feature_group_count"] = groups
    axes = options.pop("axes", None)
    strides = options.pop("strides", (1,) * (len(image) - 2))
    padding = options.pop("padding", "VALID")

    def f(image, kernel):
        out = lax.conv_general_dilated(
            image, kernel, strides, padding, dimension_numbers=axes, **options
        )
        return jnp.tanh(out)

    rng = np.random.default_rng(0)
    return f, [jnp.asarray(rng.normal(size=s), dtype) for s in (image, kernel)]


def same(ours, theirs, tolerance=1e-5):  # float32: sums of some 50 products, in another order
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), tolerance, tolerance
        )


def equations(jaxpr):
    """Every equation of a traced function, within calls and loops too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values())):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from equations(getattr(inner, "jaxpr", inner))


def ordered(eqns):
    """Whether each convolution among the equations has its axes in the canonical order."""
    found = [
        eqn.params["dimension_numbers"]
        for eqn in eqns
        if eqn.primitive.name == "conv_general_dilated"
    ]
    images = {n: (0, n - 1, *range(1, n - 1)) for n in (3, 4, 5)}
    kernels = {n: (n - 1, n - 2, *range(n - 2)) for n in (3, 4, 5)}
    return [tuple(d) == (images[n := len(d[0])], kernels[n], images[n]) for d in found]


def layouts(fn, *args):
    """The same of every convolution in a function."""
    return ordered(equations(jax.make_jaxpr(fn)(*args).jaxpr))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_values_and_gradients_are_the_same(name):
    f, args = case(name)
    loss = lambda fn: lambda *args: (fn(*args) ** 2).sum()
    gradient = jax.grad(loss(f), (0, 1))
    theirs = jax.jit(lambda *a: (f(*a), gradient(*a)))(*args)
    within = canonical_convolutions(gradient)  # of the gradient
    around = jax.grad(loss(canonical_convolutions(f)), (0, 1))  # the gradient of
    ours = jax.jit(lambda *a: (canonical_convolutions(f)(*a), within(*a), around(*a)))(*args)
    same(ours, (*theirs, theirs[1]))
    assert all(layouts(canonical_convolutions(f), *args)) == (name != "batch groups")
    if name not in ("groups", "depthwise", "batch groups"):  # gradients have groups in the batch
        assert all(layouts(within, *args))


@pytest.mark.parametrize("name", ["mixed", "groups", "batch groups"])
def test_vmap_over_either_side_and_second_order(name):
    f, (image, kernel) = case(name)
    images, kernels = jnp.stack([image, image + 1]), jnp.stack([kernel, -kernel])
    gradient = jax.grad(lambda *a: (f(*a) ** 2).sum())

    def results(fn):
        def norm(image, kernel):  # parameters closed over, and differentiated from outside
            return (fn(image, kernel) ** 2).sum()

        return [
            jax.vmap(fn, (0, None))(images, kernel),
            jax.vmap(fn, (None, 0))(image, kernels),
            jax.vmap(fn)(images, kernels),
            jax.grad(norm, 1)(image, kernel),
            jax.jvp(fn, (image, kernel), (image, kernel))[1],
        ]

    same(
        jax.jit(lambda: results(canonical_convolutions(gradient)))(),
        jax.jit(lambda: results(gradient))(),
        1e-4,  # a gradient of a gradient sums some 1000 products
    )


def test_bfloat16_and_float64_are_kept(x64):
    for dtype, tolerance in (("bfloat16", 2e-2), ("float64", 1e-12)):  # 8 bits; 52 bits
        f, args = case("NCHW", dtype)
        same(canonical_convolutions(f)(*args), f(*args), tolerance)


def test_without_a_convolution_it_is_the_same_function():
    def f(x):
        return {"a": jax.nn.relu(x["a"]) @ x["a"], "b": (x["b"], None)}

    x = {"a": jnp.ones((2, 2)), "b": 3.0}
    assert str(jax.make_jaxpr(canonical_convolutions(f))(x)) == str(jax.make_jaxpr(f)(x))


def test_what_a_function_closes_over_may_change():
    conv, (image, kernel) = case("NCHW")
    held = [kernel]
    ours = canonical_convolutions(lambda x: conv(x, held[0]))
    before = ours(image)
    held[0] = -kernel
    same(ours(image), -before)  # tanh is odd


def test_trees_calls_and_derivative_rules_survive():
    conv, (image, kernel) = case("NCHW")

    @jax.custom_jvp
    def doubled(x, kernel):
        return conv(x, kernel)

    doubled.defjvps(lambda dx, out, x, kernel: 2 * dx.sum() * out, None)

    @jax.custom_vjp
    def reversed_(x):
        return conv(x, kernel)

    reversed_.defvjp(lambda x: (reversed_(x), None), lambda _, g: (jnp.full_like(image, g.sum()),))

    def f(x, scale):
        plain = jax.jit(conv)(x["image"], kernel)
        again = jax.checkpoint(lambda x: conv(x, kernel))(x["image"])
        looped = lax.map(lambda k: conv(x["image"], k), jnp.stack([kernel, -kernel]))
        rules = doubled(x["image"], kernel) + reversed_(x["image"])
        kinks = jax.nn.relu(plain * 0)  # 0 is the slope there, by relu's own rule
        return {"sum": plain * scale + again + looped.sum(0) + kinks, "rules": [rules, None]}

    def total(fn):
        return lambda x, s: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(fn(x, s)))

    x, ours = {"image": image}, canonical_convolutions(f)

    def both(fn):
        return jax.jit(lambda: (fn(x, 2.0), jax.grad(total(fn))(x, 2.0)))()

    same(both(ours), both(f), 1e-4)  # gradients sum some 1000 products
    # The call was entered; the loop and the functions with rules of their own were not.
    assert sum(layouts(ours, x, 2.0)) == 1 and sum(layouts(f, x, 2.0)) == 0


def test_names_and_collectives_survive():
    conv, (image, kernel) = case("NCHW")

    def f(x):
        with jax.named_scope("layer"):
            return lax.pmean(jax.jit(conv)(x, kernel), "batch")

    mapped = partial(jax.vmap, axis_name="batch")
    images = jnp.stack([image, image + 1])
    same(mapped(canonical_convolutions(f))(images), mapped(f)(images))
    traced = jax.make_jaxpr(canonical_convolutions(jax.vmap(f, axis_name="batch")))(images)
    names = {str(e.source_info.name_stack) for e in traced.jaxpr.eqns if "conv" in str(e.primitive)}
    assert len(names) == 1 and "layer" in names.pop()


def score(kernel, image):
    out = lax.conv_general_dilated(image[None], kernel, (2, 2), "SAME")  # NCHW, OIHW
    return (jnp.tanh(out) ** 2).sum()


METHODS = {
    "integrated_gradients": partial(jxp.integrated_gradients, steps=4),
    "expected_gradients": partial(
        jxp.expected_gradients, baselines=jnp.zeros((2, 3, 8, 8)), samples=4
    ),
    "smooth": jxp.smooth(jxp.saliency, samples=4),
    "smooth integrated gradients": jxp.smooth(
        partial(jxp.integrated_gradients, steps=4, chunk=2), samples=4
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_lay_out_what_is_in_their_loops(name, key, monkeypatch):
    kernel = jax.random.normal(key, (4, 3, 3, 3))
    images = jax.random.normal(key, (8, 3, 8, 8))

    def explain(kernel, image):
        return METHODS[name](partial(score, kernel), image, key=key).scores

    def in_loops():
        traced = jax.make_jaxpr(lambda *args: explain(*args))(kernel, images[0])  # not cached
        loops = [eqn for eqn in equations(traced.jaxpr) if eqn.primitive.name == "scan"]
        return [c for loop in loops for c in ordered(equations(loop.params["jaxpr"].jaxpr))]

    def scores(images, map=jax.vmap):
        return jax.jit(map(lambda *args: explain(*args), (None, 0)))(kernel, images)

    assert in_loops() and all(in_loops())
    mesh = Mesh(np.array(jax.devices()), ("data",))
    ours = scores(jax.device_put(images, NamedSharding(mesh, P("data"))))
    assert ours.sharding.spec == P("data")
    if name == "integrated_gradients":
        places: dict = dict(mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
        mapped = lambda f, axes: jax.shard_map(jax.vmap(f, axes), check_vma=False, **places)
        same(scores(images, mapped), ours)
    monkeypatch.setattr("jaxplain.methods.sampling.canonical_convolutions", lambda fn: fn)
    assert not all(in_loops())
    same(ours, scores(images))
