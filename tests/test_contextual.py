"""Contextual decomposition: what all tables promise on all models, and each one's rules."""

import json
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxplain as jxp
from jaxplain.models import bert
from jaxplain.types import JaxplainError, Split
from tests import cd_replicas, decomposed_models
from tests.decomposed_models import make
from tests.helpers import TOLERANCE, close, quick_compile

TABLES = {
    name: getattr(jxp, name)
    for name in ("CD_ACD", "CD_LSTM", "CD_TRANSFORMER", "CD_TRANSFORMER_QK", "CD_SHAPLEY")
}
# Without a softmax, CD_TRANSFORMER_QK is CD_TRANSFORMER.
SOFTMAX = ("transformer", "prenorm", "attention", "text_transformer", "bert")
EVERY = [
    (table, name)
    for name in decomposed_models.NAMES
    for table in TABLES
    if table != "CD_TRANSFORMER_QK" or name in SOFTMAX
]
# A table each for what it was made for, and all of them on what has most kinds of rules.
SOME = [
    ("CD_ACD", "cnn"),
    ("CD_LSTM", "lstm"),
    ("CD_TRANSFORMER", "transformer"),
    ("CD_TRANSFORMER_QK", "transformer"),
    *(("CD_SHAPLEY", name) for name in ("mlp", "gru", "transformer", "norms")),
]


# Where both parts are 0 and a constant is added, the published tables halve it: after a dead unit,
# or at a recurrent network's first state.
HALVED = ("bidirectional", "branch_on_data")
HALVED_AT_FIRST = (*HALVED, "lstm", "lstm_optimized", "gru", "nnx_lstm_optimized")


# Of each table, the model with the most places where a derivative could be infinite.
STEEP = [
    ("CD_ACD", "cnn"),
    ("CD_LSTM", "lstm"),
    ("CD_TRANSFORMER_QK", "transformer"),
    ("CD_SHAPLEY", "gru"),
    ("CD_SHAPLEY", "mlp"),
]


# What holds for all.


class Groups(NamedTuple):
    """Masks, `[G, *x]` each, by what they are."""

    none: Any
    all: Any
    some: Any
    others: Any
    real: Any
    others_real: Any


def groups(x) -> Groups:
    """Of every leaf about half the elements, and a share of each; the same for the same shapes."""
    draw = np.random.default_rng(0)
    shares = jax.tree.map(lambda v: draw.uniform(size=v.shape).astype("f4"), x)
    some = jax.tree.map(lambda v: (v > np.median(v)) | (v.size == 1), shares)
    each = lambda f, tree: jax.tree.map(lambda v: np.asarray(f(v), "f4"), tree)
    return Groups(
        each(np.zeros_like, some),
        each(lambda v: np.ones_like(v, "f4"), some),
        each(lambda v: v, some),
        each(lambda v: 1 - v.astype("f4"), some),
        shares,
        each(lambda v: 1 - v, shares),
    )


def stacked(masks):
    return jax.tree.map(lambda *v: jnp.stack(v), *masks)


@lru_cache
def programs(name, dtype, tables):
    """The scores of all `groups` by each table, and f(x): one program for all checks below."""
    model = make(name, dtype)

    @jax.jit
    def program(params, x, masks):
        f = partial(model.apply, params)
        scores = lambda table: jxp.group_scores(f, x, masks, rules=TABLES[table])
        return {table: scores(table) for table in tables}, f(x)

    with quick_compile():
        return program(model.params, model.x, stacked(groups(model.x)))


def scored(table, name, dtype="f4"):
    """The scores by one table, by group, and f(x)."""
    every = tuple(t for t, n in EVERY if n == name) if dtype == "f4" else (table,)
    splits, output = programs(name, dtype, every)
    by_group = [jax.tree.map(lambda v, i=i: v[i], splits[table]) for i in range(6)]
    return Groups(*by_group), output


def rounding(*arrays, dtype="float32", factor=1.0):
    """What sums of numbers as large as these are good to."""
    largest = max(float(np.max(np.abs(np.asarray(a, np.float64)))) for a in arrays)
    return TOLERANCE[dtype] * factor * largest


@pytest.mark.parametrize(("table", "name"), EVERY)
def test_parts_sum_to_the_function_and_no_features_are_no_part(table, name):
    found, output = scored(table, name)
    for relevant, irrelevant in found:
        assert relevant.shape == irrelevant.shape == output.shape
        assert relevant.dtype == irrelevant.dtype == output.dtype
        atol = rounding(relevant, irrelevant, output)
        np.testing.assert_allclose(relevant + irrelevant, output, rtol=0, atol=atol)
    if table in ("CD_SHAPLEY", "CD_LSTM") or name not in HALVED:
        np.testing.assert_allclose(found.none.relevant, 0, rtol=0, atol=rounding(output))
    # So that a table that calls nothing relevant does not pass.
    assert np.abs(found.some.relevant).max() > 1e-4 * np.abs(output).max()
    assert np.abs(found.real.relevant).max() > 1e-4 * np.abs(output).max()


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (table, name)
        for table, name in EVERY
        if table == "CD_SHAPLEY" or (table == "CD_ACD" and name not in HALVED_AT_FIRST)
    ],
)
def test_all_features_are_all(table, name):
    """Constants go to the parts by their sizes: to the only part there is, if there is one."""
    found, output = scored(table, name)
    # The relevant part is rounded on its own; a variance of it, E[x²] - E[x]², cancels.
    atol = rounding(output, factor=4)
    np.testing.assert_allclose(found.all.relevant, output, rtol=0, atol=atol)
    np.testing.assert_allclose(found.all.irrelevant, 0, rtol=0, atol=atol)


@pytest.mark.parametrize("name", decomposed_models.NAMES)
def test_shapley_does_not_mind_which_part_is_called_relevant(name):
    found, _ = scored("CD_SHAPLEY", name)
    for one, other in ((found.some, found.others), (found.real, found.others_real)):
        atol = rounding(*one, *other, factor=2)
        np.testing.assert_allclose(one.relevant, other.irrelevant, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("table", "name"), [("CD_ACD", "relu_mlp"), ("CD_TRANSFORMER", "transformer")]
)
def test_other_tables_do_mind(table, name):
    found, output = scored(table, name)
    assert np.abs(found.some.relevant - found.others.irrelevant).max() > 1e-2 * abs(output).max()


@pytest.mark.parametrize(("table", "name"), SOME)
def test_bfloat16(table, name):
    """The sum is that of the same program in bfloat16; the parts are those of float32."""
    found, output = scored(table, name, "bfloat16")
    wide, _ = scored(table, name)
    for narrow, split in zip(found, wide, strict=True):
        assert narrow.relevant.dtype == output.dtype == jnp.bfloat16
        sum_of = lambda s: np.asarray(s.relevant, "f4") + np.asarray(s.irrelevant, "f4")
        atol = rounding(*split, dtype="bfloat16")
        np.testing.assert_allclose(sum_of(narrow), np.asarray(output, "f4"), rtol=0, atol=atol)
        # Another input and other weights, rounded: some units of bfloat16 a layer.
        for got, want in zip(narrow, split, strict=True):
            np.testing.assert_allclose(np.asarray(got, "f4"), want, rtol=0, atol=4 * atol)


# Gradients.


@pytest.mark.parametrize("dtype", ["f4", "bfloat16"])
@pytest.mark.parametrize(("table", "name"), STEEP)
def test_gradients_are_finite_even_at_nothing(table, name, dtype):
    """At a generic point, at x = 0 and at empty, full and partial masks, in one program."""
    model = make(name, dtype)
    masks = groups(model.x)
    nothing = jax.tree.map(jnp.zeros_like, model.x)
    points = [(x, m) for x in (model.x, nothing) for m in (masks.none, masks.all, masks.real)]
    xs, ms = (stacked(v) for v in zip(*points, strict=True))

    def loss(params, x, mask):
        f = partial(model.apply, params)
        split = jxp.contextual_decomposition(f, x, mask, rules=TABLES[table])
        return jnp.sum(split.relevant**2) + jnp.sum(jnp.sin(split.irrelevant))

    with quick_compile():
        gradient = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1)), (None, 0, 0)))
        found = gradient(model.params, xs, ms)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert np.isfinite(np.asarray(leaf, "f4")).all(), jax.tree_util.keystr(path)
    generic = jax.tree.map(lambda v: np.abs(np.asarray(v[2], "f4")).max(), found[1])
    assert min(jax.tree.leaves(generic)) > 0


@pytest.mark.parametrize(
    ("table", "name"),
    [("CD_SHAPLEY", "mlp"), ("CD_LSTM", "lstm"), ("CD_TRANSFORMER", "transformer")],
)
def test_gradients_are_those_of_finite_differences(x64, table, name):
    model = make(name, "f8")
    mask = groups(model.x).real

    @jax.jit
    def loss(params):
        f = partial(model.apply, params)
        split = jxp.contextual_decomposition(f, model.x, mask, rules=TABLES[table])
        return jnp.sum(split.relevant**2)

    params = jax.tree.map(jnp.asarray, model.params)
    with quick_compile():
        gradient = jax.jit(jax.grad(loss))(params)
        loss(params)
    direction = jax.tree.map(lambda v: jnp.cos(jnp.arange(v.size)).reshape(v.shape), params)
    step = 1e-6
    at = lambda s: float(loss(jax.tree.map(lambda v, d: v + s * d, params, direction)))
    # 1e-12 of truncation times third derivatives of up to some 1e4, and 1e-16 / 1e-6 of rounding.
    slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
    assert float(slope) == pytest.approx((at(step) - at(-step)) / (2 * step), rel=1e-6)


# Each table against its paper, in double precision: nothing but rounding is left between them.

ROUNDING64 = 1e-12


def f8(tree):
    return jax.tree.map(lambda v: np.asarray(v, np.float64), tree)


def agrees(table, name, replica, *, masks=None, rtol=ROUNDING64):
    """`replica(params, x, mask)` equals the table on the model, for all masks at once."""
    model = make(name, "f8")
    rules = TABLES[table] if isinstance(table, str) else table
    if masks is None:
        masks = [groups(model.x).some > 0, groups(model.x).real]
    run = lambda x, m: jxp.group_scores(model.f, x, m, rules=rules)
    with quick_compile():
        split = jax.jit(run)(model.x, jnp.stack([jnp.asarray(m, "f8") for m in masks]))
    params, x = f8(model.params), np.asarray(model.x)
    want = [replica(params, x, np.asarray(m)) for m in masks]
    scale = max(np.abs(p).max() for w in want for p in w)
    for got, part in ((split.relevant, "rel"), (split.irrelevant, "irr")):
        np.testing.assert_allclose(
            got, [getattr(w, part) for w in want], rtol=0, atol=rtol * scale, err_msg=part
        )


R = cd_replicas


def test_acd_on_a_cnn(x64):
    agrees("CD_ACD", "cnn", R.acd_cnn)


MLP_RULES = [
    ("CD_ACD", R.first),
    ("CD_TRANSFORMER", R.last),
    ("CD_TRANSFORMER_QK", R.last),
    ("CD_SHAPLEY", R.shapley),
]


@pytest.mark.parametrize(("table", "rule"), MLP_RULES)
@pytest.mark.parametrize(("name", "second"), [("relu_mlp", R.relu), ("mlp", np.tanh)])
def test_activations_in_an_mlp(x64, table, rule, name, second):
    # The published Transformer code adds 1e-8 to the sizes that share a bias.
    rtol = 1e-6 if "TRANSFORMER" in table else ROUNDING64
    replica = partial(R.mlp, rule=rule, activations=(R.relu, second))
    agrees(table, name, replica, rtol=rtol)


def phrases(x, spans):
    tokens = np.arange(len(x))
    return [((a <= tokens) & (tokens <= b))[:, None] * np.ones_like(x) for a, b in spans]


@pytest.mark.parametrize("bias_product", ["inclusive", "exclusive", "irrelevant"])
@pytest.mark.parametrize("name", ["lstm", "lstm_optimized"])
def test_murdoch_on_lstms(x64, name, bias_product):
    spans = [(0, 4), (1, 3), (2, 2), (0, 0), (4, 4)]

    def replica(params, x, mask):
        inside = np.flatnonzero(mask[:, 0])
        return R.murdoch(params, x, inside[0], inside[-1], bias_product)

    rules = jxp.lstm_rules(bias_product=bias_product)
    agrees(rules, name, replica, masks=phrases(make(name, "f8").x, spans))


def test_the_default_of_murdoch_is_inclusive(x64):
    replica = lambda p, x, mask: R.murdoch(p, x, 1, 3)
    agrees("CD_LSTM", "lstm", replica, masks=phrases(make("lstm", "f8").x, [(1, 3)]))


def test_bias_products_that_do_not_exist_are_refused():
    with pytest.raises(JaxplainError, match=r"inclusive.*exclusive.*irrelevant"):
        jxp.lstm_rules(bias_product="both")  # type: ignore[arg-type]


def test_nnx_cells_are_as_linen_cells(x64):
    """Another name for the parameters, and a loop of Python in place of a scan."""

    def renamed(params):
        cell = {name.rstrip("_"): layer for name, layer in params["cell"].items()}
        return {"params": {"cell": cell, "Dense_0": params["head"]}}

    def replica(params, x, mask):
        inside = np.flatnonzero(mask[:, 0])
        return R.murdoch(renamed(params), x, inside[0], inside[-1])

    masks = phrases(make("nnx_lstm", "f8").x, [(0, 2), (1, 1)])
    agrees("CD_LSTM", "nnx_lstm", replica, masks=masks)
    # Its kernels are side by side.
    gates = lambda d, v: {f"{d}{g}": v[..., 4 * i : 4 * i + 4] for i, g in enumerate("ifgo")}

    def split(params):
        cell = params["cell"]
        kernels = gates("i", cell["dense_i"]["kernel"]) | gates("h", cell["dense_h"]["kernel"])
        biases = gates("h", cell["dense_h"]["bias"])
        layers = {
            k: {"kernel": v} | ({"bias": biases[k]} if k in biases else {})
            for k, v in kernels.items()
        }
        return {"cell": layers, "head": params["head"]}

    agrees("CD_LSTM", "nnx_lstm_optimized", lambda p, x, m: replica(split(p), x, m), masks=masks)


def test_shapley_on_a_gru(x64):
    agrees("CD_SHAPLEY", "gru", R.gru)


def test_shapley_on_a_product(x64):
    """Of two functions of x: both parts of each go their own way, and what they share is halved."""
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 5, 3))
    x, mask = draw.normal(size=5), draw.uniform(size=5)
    got = jxp.contextual_decomposition(lambda x: (x @ a) * jnp.tanh(x @ b), x, mask)
    parts = R.masked(x, mask)
    left = R.each(lambda v: v @ a, parts)
    right = R.shapley(np.tanh, R.each(lambda v: v @ b, parts))
    want = R.times(left, right)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)


# The published code adds 1e-8 to the sizes that share a bias, in sums of about 1.
PUBLISHED_EPSILON = 1e-6


@pytest.mark.parametrize(
    ("table", "held"), [("CD_TRANSFORMER", True), ("CD_TRANSFORMER_QK", False)]
)
def test_transformer(x64, table, held):
    tokens = phrases(make("transformer", "f8").x, [(0, 0), (1, 2), (3, 3)])
    masks = [*tokens, groups(make("transformer", "f8").x).real]
    replica = partial(R.transformer, held=held)
    agrees(table, "transformer", replica, masks=masks, rtol=PUBLISHED_EPSILON)


@pytest.mark.parametrize(
    ("table", "held"), [("CD_TRANSFORMER", True), ("CD_TRANSFORMER_QK", False)]
)
def test_bert(x64, table, held):
    config = json.loads((decomposed_models.BERT / "config.json").read_text())
    model = bert.load_bert(decomposed_models.BERT, pooling="pooler")
    params = f8(model.params)
    ids = model.tokenize("not a good film").ids
    x = np.asarray(model.embed(params, ids))
    masks = np.stack([*phrases(x, [(1, 1), (1, 2), (3, 4)])])
    f = lambda x: model.score(params, x, np.ones(len(ids), bool))
    with quick_compile():
        run = lambda x, m: jxp.group_scores(f, x, m, rules=TABLES[table])
        split = jax.jit(run)(x, masks)
    sizes = dict(heads=config["num_attention_heads"], epsilon=config["layer_norm_eps"], held=held)
    want = [R.bert(params, x, mask, **sizes) for mask in masks]
    for got, part in ((split.relevant, "rel"), (split.irrelevant, "irr")):
        expected = np.stack([getattr(w, part) for w in want])
        atol = PUBLISHED_EPSILON * np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


# What tells the tables apart.

ONE_UNIT = [
    # Parts 3 and -2 of a unit that is 1 in all: first, last, and their mean.
    ("CD_ACD", 3.0),
    ("CD_TRANSFORMER", 1.0),
    ("CD_TRANSFORMER_QK", 1.0),
    ("CD_SHAPLEY", 2.0),
]


@pytest.mark.parametrize("relu", [jax.nn.relu, lambda v: jnp.maximum(v, 0), jax.jit(jax.nn.relu)])
@pytest.mark.parametrize(("table", "want"), ONE_UNIT)
def test_a_unit_whose_parts_cancel(table, want, relu):
    x, mask = jnp.array([3.0, -2.0]), jnp.array([True, False])
    f = lambda x: relu(x[0] + x[1])
    split = jxp.contextual_decomposition(f, x, mask, rules=TABLES[table])
    assert split == (want, 1 - want)


def test_tables_differ_on_a_network_of_two_units():
    """relu(3 - 2) - relu(4 - 5) with a bias of 1 in each, shared as 3 : 2 and 4 : 5."""
    w, b = jnp.array([[3.0, 4.0], [-2.0, -5.0]]), jnp.ones(2)
    f = lambda x: jax.nn.relu(x @ w + b) @ jnp.array([1.0, -1.0])
    units = R.plus(R.Parts(np.array([3.0, 4.0]), np.array([-2.0, -5.0])), np.ones(2))
    found = {}
    for table, rule in MLP_RULES:
        split = jxp.contextual_decomposition(f, jnp.ones(2), jnp.array([1, 0]), rules=TABLES[table])
        want = R.each(lambda v: v @ np.array([1.0, -1.0]), rule(R.relu, units))
        np.testing.assert_allclose(split, want, rtol=0, atol=1e-6)
        found[rule] = float(split.relevant)
    assert len(set(found.values())) == 3


def test_attention_held_or_not():
    found, output = scored("CD_TRANSFORMER", "transformer")
    other, _ = scored("CD_TRANSFORMER_QK", "transformer")
    assert np.abs(found.some.relevant - other.some.relevant).max() > 1e-3 * np.abs(output).max()


def test_a_gate_held_or_not():
    found, output = scored("CD_SHAPLEY", "lstm")
    other, _ = scored("CD_LSTM", "lstm")
    assert np.abs(found.some.relevant - other.some.relevant).max() > 1e-2 * np.abs(output).max()


@pytest.mark.parametrize("table", TABLES)
def test_a_linear_function_is_shared_by_its_terms(table):
    w = jnp.array([[1.0, -2.0], [0.5, 4.0], [3.0, 0.25]])
    x, mask = jnp.array([2.0, -1.0, 0.5]), jnp.array([1.0, 0.0, 0.25])
    split = jxp.contextual_decomposition(lambda x: x @ w, x, mask, rules=TABLES[table])
    close(split.relevant, (x * mask) @ w)


def test_max_pools_take_both_parts_of_the_greatest():
    x, mask = jnp.array([1.0, 5.0, -2.0, 3.0]), jnp.array([1.0, 0.25, 0.0, 1.0])
    f = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2,), (2,), "VALID")
    split = jxp.contextual_decomposition(f, x, mask, rules=jxp.CD_ACD)
    close(split, Split(jnp.array([1.25, 3.0]), jnp.array([3.75, 0.0])))
    split = jxp.contextual_decomposition(jnp.max, x, mask, rules=jxp.CD_ACD)
    close(split, Split(jnp.float32(1.25), jnp.float32(3.75)))


# The user's own rules and marks.


def test_one_rule_overrides_another():
    x, mask = jnp.array([3.0, -2.0]), jnp.array([True, False])
    f = lambda x: jax.lax.erf(x[0] + x[1])
    scores = lambda rules: jxp.contextual_decomposition(f, x, mask, rules=rules)
    mixed = {**jxp.CD_ACD, "erf": jxp.CD_SHAPLEY["elementwise"]}
    close(scores(mixed), scores(jxp.CD_SHAPLEY))
    assert abs(scores(jxp.CD_ACD).relevant - scores(jxp.CD_SHAPLEY).relevant) > 0.1
    g = lambda x: jnp.tanh(x[0] + x[1])  # other primitives keep theirs
    other = jxp.contextual_decomposition(g, x, mask, rules=mixed)
    close(other, jxp.contextual_decomposition(g, x, mask, rules=jxp.CD_ACD))


def test_a_missing_rule_can_be_added():
    x, mask = jnp.array([0.5, -0.2]), jnp.array([True, False])
    f = lambda x: jax.lax.erf_inv(x[0] + x[1])
    assert [entry.name for entry in jxp.missing(f, x, jxp.CD_ACD)] == ["erf_inv"]
    rules = {**jxp.CD_ACD, "erf_inv": jxp.CD_ACD["elementwise"]}
    assert jxp.missing(f, x, rules) == []
    split = jxp.contextual_decomposition(f, x, mask, rules=rules)
    close(split.relevant, jax.lax.erf_inv(0.5))


def test_a_named_function_is_one_step():
    """Two activations, each shared by its own rule, or both as one."""
    x, mask = jnp.array([3.0, -2.0]), jnp.array([True, False])
    both = lambda v: jax.nn.relu(jnp.tanh(v) - 0.5)
    step = jxp.named("both", both)
    plain, marked = (lambda x, g=g: g(x[0] + x[1]) for g in (both, step))
    close(marked(x), plain(x))
    scores = lambda f, rules: jxp.contextual_decomposition(f, x, mask, rules=rules)
    close(scores(marked, jxp.CD_ACD), scores(plain, jxp.CD_ACD))  # a name without a rule is none
    whole = {**jxp.CD_ACD, "both": jxp.CD_ACD["elementwise"]}
    np.testing.assert_allclose(scores(marked, whole).relevant, both(3.0), rtol=1e-6)
    assert abs(scores(plain, whole).relevant - both(3.0)) > 0.01
    close(jax.grad(marked)(x), jax.grad(plain)(x))
    close(jax.vmap(step)(x), jax.vmap(both)(x))


@pytest.mark.parametrize("table", TABLES)
def test_a_held_value_is_a_factor(table):
    """Its parts are not told apart: what it multiplies is shared as if it were a constant."""
    x, mask = jnp.array([2.0, -3.0]), jnp.array([True, False])
    gate = lambda x: jax.nn.sigmoid(x[0] + x[1])
    held = lambda x: jxp.hold(gate(x)) * x
    split = jxp.contextual_decomposition(held, x, mask, rules=TABLES[table])
    close(split.relevant, gate(x) * x * mask)
    close(split.irrelevant, gate(x) * x * (1 - mask))


def test_a_part_that_is_nothing_keeps_its_derivative():
    """Of tanh(a + b), with a alone or with both: a's part, and the parts of a = 0 and of all."""
    x = jnp.array([0.0, 0.7])

    def part(x, group, table):
        f = lambda x: jnp.tanh(x[0] + x[1])
        return jxp.contextual_decomposition(f, x, jnp.array(group), rules=table).relevant

    slope = float(1 - np.tanh(0.7) ** 2)
    for table, want in ((jxp.CD_SHAPLEY, (1 + slope) / 2), (jxp.CD_ACD, 1), ("last", slope)):
        table = jxp.CD_TRANSFORMER if table == "last" else table
        one = jax.grad(part)(x, [True, False], table)
        np.testing.assert_allclose(one[0], want, rtol=1e-6)
        both = jax.grad(part)(x, [True, True], table)
        np.testing.assert_allclose(both, [slope, slope], rtol=1e-6)


def test_a_held_value_keeps_its_derivative():
    f = lambda x: jxp.hold(jnp.sin(x)) * x
    assert jxp.hold(2.0) == 2.0
    tree = {"a": jnp.ones(2), "b": (jnp.zeros(()),)}
    close(jxp.hold(tree), tree)
    close(jax.grad(f)(0.5), jax.grad(lambda x: jnp.sin(x) * x)(0.5))
    close(jax.vmap(jxp.hold)(jnp.arange(3.0)), jnp.arange(3.0))


# Masks.


def test_masks_of_any_kind_and_of_fewer_axes():
    w, x = jnp.array([1.0, -2.0, 0.5]), jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)))
    f = lambda x: jnp.tanh(x @ w + 0.5)
    run = partial(jxp.contextual_decomposition, f, x)
    words = jnp.array([True, False, True, True, False])[:, None]
    want = run(jnp.broadcast_to(words, x.shape))
    for mask in (words, words.astype(jnp.float32), words.astype(jnp.int32), np.asarray(words)):
        close(run(mask), want)
    close(run(True), run(jnp.ones(x.shape)))
    close(run(0.25), run(jnp.full(x.shape, 0.25)))
    close(run(jnp.array([1.0, 0.0, 0.5])), run(jnp.tile(jnp.array([[1.0, 0.0, 0.5]]), (5, 1))))
    close(jxp.group_scores(f, x, jnp.stack([words, ~words])).relevant[0], want.relevant)


def test_trees_in_and_trees_out():
    x = {"a": jnp.array([1.0, 2.0]), "b": (jnp.array(3.0),)}
    f = lambda x: {"sum": x["a"].sum() + x["b"][0], "twice": (2 * x["a"],)}
    mask = {"a": jnp.array([True, False]), "b": (False,)}
    split = jxp.contextual_decomposition(f, x, mask)
    close(split.relevant, {"sum": jnp.float32(1), "twice": (jnp.array([2.0, 0.0]),)})
    close(split.irrelevant, {"sum": jnp.float32(5), "twice": (jnp.array([0.0, 4.0]),)})
    close(jxp.contextual_decomposition(f, x, 0.5).relevant["sum"], jnp.float32(3))
    masks = {"a": jnp.array([[1, 0], [0, 1.0]]), "b": (jnp.zeros(2),)}
    scores = jxp.group_scores(f, x, masks)
    close(
        scores.relevant, {"sum": jnp.array([1.0, 2.0]), "twice": (jnp.array([[2.0, 0], [0, 4]]),)}
    )


def test_results_that_do_not_depend_on_x_are_irrelevant():
    f = lambda x: (x.sum(), jnp.float32(7))
    split = jxp.contextual_decomposition(f, jnp.ones(2), True)
    close(split, Split((jnp.float32(2), jnp.float32(0)), (jnp.float32(0), jnp.float32(7))))
    x = jnp.array([1.0, 2.0])
    branch = lambda x: jax.lax.cond(x[0] > 0, lambda v: jnp.float32(7), lambda v: v.sum(), x)
    close(jxp.contextual_decomposition(branch, x, True), Split(jnp.float32(0), jnp.float32(7)))


# Transformations, devices, memory.

TRANSFORMED = [("CD_SHAPLEY", "relu_mlp"), ("CD_LSTM", "lstm")]


@pytest.mark.parametrize(("table", "name"), TRANSFORMED)
def test_jit_vmap_pmap_shards_and_chunks_all_equal_a_loop(table, name):
    model, rules = make(name), TABLES[table]
    one = lambda x, mask: jxp.contextual_decomposition(model.f, x, mask, rules=rules)
    draw = np.random.default_rng(1)
    masks = jnp.asarray(draw.uniform(size=(8, *model.x.shape)) > 0.5, jnp.float32)
    xs = jnp.stack([model.x + 0.1 * i for i in range(8)])
    with quick_compile():
        program = jax.jit(one)
        loop = stacked([program(model.x, mask) for mask in masks])
        close(jax.jit(jax.vmap(one, (None, 0)))(model.x, masks), loop)
        for chunk in (1, 3, 64):
            groups = partial(jxp.group_scores, model.f, rules=rules, chunk=chunk)
            close(jax.jit(groups)(model.x, masks), loop)

        loop = stacked([program(x, mask) for x, mask in zip(xs, masks, strict=True)])
        close(jax.jit(jax.vmap(one))(xs, masks), loop)
        close(jax.pmap(one)(xs, masks), loop)
        spread = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
        inputs = jax.device_put((xs, masks), spread)
        sharded = jax.jit(jax.vmap(one), out_shardings=spread)(*inputs)
        assert len(sharded.relevant.addressable_shards) == 8
        close(sharded, loop)


def test_jit_equals_eager():
    model = make("relu_mlp")
    one = partial(jxp.contextual_decomposition, model.f, model.x)
    close(jax.jit(one)(groups(model.x).real), one(groups(model.x).real))


@pytest.fixture
def compiled():
    """A list with True for each program that XLA compiles."""
    found = []
    listen = lambda event, *_, **__: found.append(event.endswith("backend_compile_duration"))
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.clear_event_listeners()


def test_one_compilation_serves_all_masks_examples_and_parameters(compiled):
    model = make("relu_mlp")

    @jax.jit
    def program(params, x, masks):
        return jxp.group_scores(partial(model.apply, params), x, masks, chunk=3)

    masks = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 8, 5)) > 0.5)
    inputs = [(model.params, model.x, masks[0]), (model.params, model.x + 1, masks[1])]
    inputs.append((jax.tree.map(lambda p: p * 2, model.params), model.x, masks[2]))
    counts = []
    for args in jax.block_until_ready(inputs):
        compiled.clear()
        jax.block_until_ready(program(*args))
        counts.append(sum(compiled))
    assert counts == [1, 0, 0]


def cost(table, groups, chunk, *, width=96):
    """The compiled program of an MLP's group scores, and that of its batched forward pass."""
    draw = np.random.default_rng(0)
    a, b = (jnp.asarray(draw.normal(size=(width, width)), "f4") for _ in "ab")
    c = jnp.asarray(draw.normal(size=(width, 2)), "f4")
    f = lambda x: jax.nn.relu(jax.nn.relu(x @ a + 1) @ b + 1) @ c
    masks = jnp.zeros((groups, width))
    score = lambda x, m: jxp.group_scores(f, x, m, rules=TABLES[table], chunk=chunk)
    scores = jax.jit(score).lower(jnp.zeros(width), masks).compile()
    return scores, jax.jit(jax.vmap(f)).lower(masks).compile()


@pytest.mark.parametrize("table", TABLES)
def test_one_group_more_costs_little_more_than_one_forward_pass(table):
    """The total is computed once, for all groups; a group is the products of its relevant part."""
    scores, forward = cost(table, 64, 64)
    flops = [(program.cost_analysis() or {})["flops"] for program in (scores, forward)]
    assert flops[0] <= 1.5 * flops[1]


def test_memory_is_that_of_a_chunk():
    def temporary(groups, chunk):
        analysis = cost("CD_SHAPLEY", groups, chunk)[0].memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    few, many = temporary(128, 32), temporary(2048, 32)
    padded = 2048 * 2 * 4 * 4  # both parts of both outputs, and a copy of each
    assert many <= 1.05 * few + padded
    assert temporary(2048, 2048) > 2 * many  # so that this test can fail
