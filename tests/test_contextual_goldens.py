"""Contextual decomposition against the scores of the published packages, on their own networks.

The numbers are stored in goldens/contextual_*.npz; goldens/make_contextual.py says how they were
made. Every comparison is of both parts, relevant and irrelevant, of every output.
"""

import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from tests import contextual_networks as networks

GOLDENS = Path(__file__).parent / "goldens"

# Of float32 and of float64 runs of one computation: rounding, some tens of sums deep. Two rules
# that differ are 1e-3 apart here, and more.
TOLERANCE = {"f4": 1e-5, "f8": 1e-10}


def stored(name):
    with np.load(GOLDENS / f"contextual_{name}.npz") as file:
        return {key: file[key] for key in file.files}


def equal(got, relevant, irrelevant, tolerance):
    """Both parts, to `tolerance` of the larger of 1 and the largest number in either."""
    scale = max(1.0, np.abs(relevant).max(), np.abs(irrelevant).max())
    for name, mine, theirs in (
        ("relevant", got[0], relevant),
        ("irrelevant", got[1], irrelevant),
    ):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * scale, err_msg=name)


def cast(tree, key):
    return jax.tree.map(lambda v: jnp.asarray(v, key), tree)


def cnn(name, key):
    """f, x and the stored numbers of a convolutional network."""
    golden = stored("resnet")
    start = f"{name}_param_"
    params = {k[len(start) :]: v for k, v in golden.items() if k.startswith(start)}
    f = partial(networks.CNNS[name], cast(params, key))
    return f, cast(golden[f"{name}_x"], key), golden


def mnist():
    folder = os.environ.get("JAXPLAIN_DATA")
    if not folder:
        pytest.skip("set JAXPLAIN_DATA to a folder that holds acd/acd_mnist_oracle.npz")
    with np.load(Path(folder) / "acd" / "acd_mnist_oracle.npz") as file:
        golden = {key: file[key] for key in file.files}
    params = {k.replace("__", "."): jnp.asarray(v) for k, v in golden.items() if "__" in k}
    return partial(networks.mnist, params), golden


@pytest.mark.parametrize("name", networks.CNNS)
def test_a_ported_cnn_is_torchs(name):
    f, x, golden = cnn(name, "f4")
    np.testing.assert_allclose(jax.jit(f)(x), golden[f"{name}_f4_logits"], atol=1e-5)


@pytest.mark.parametrize("size", networks.LSTMS)
def test_a_ported_lstm_is_torchs(size):
    p = cast(networks.draw_lstm(size), "f4")
    got = jax.jit(networks.lstm)(p, p["words"]) + p["out_bias"]
    np.testing.assert_allclose(got, stored("lstm")[f"{size}_f4_logits"], atol=1e-5)


@pytest.mark.parametrize("case", ["whole", "padded"])
def test_a_ported_bert_is_torchs(case):
    golden = stored("bert")
    p = cast(networks.draw_bert(), "f4")
    got = jax.jit(networks.bert)(p, golden[f"{case}_attend"], golden[f"{case}_f4_x"])
    np.testing.assert_allclose(got["logits"], golden[f"{case}_f4_logits"], atol=1e-5)


def test_the_ported_mnist_network_is_torchs():
    f, golden = mnist()
    np.testing.assert_allclose(f(golden["x"]), golden["logits"][0], atol=1e-5)


@pytest.mark.parametrize("name", networks.CNNS)
def test_cd_acd_is_the_published_on_residual_networks(name):
    f, x, golden = cnn(name, "f4")
    masks = golden[f"{name}_masks"][:, None]
    got = jax.jit(lambda x, masks: jxp.group_scores(f, x, masks, rules=jxp.CD_ACD))(x, masks)
    equal(got, golden[f"{name}_f4_relevant"], golden[f"{name}_f4_irrelevant"], TOLERANCE["f4"])


@pytest.mark.parametrize("name", networks.CNNS)
def test_cd_acd_in_float64(x64, name):
    f, x, golden = cnn(name, "f8")
    masks = golden[f"{name}_masks"][:, None]
    got = jax.jit(lambda x, masks: jxp.group_scores(f, x, masks, rules=jxp.CD_ACD))(x, masks)
    equal(got, golden[f"{name}_f8_relevant"], golden[f"{name}_f8_irrelevant"], TOLERANCE["f8"])


def test_cd_acd_is_the_published_on_its_mnist_network():
    f, golden = mnist()
    names = ("full", "top", "tile")
    masks = np.stack([golden[f"mask_{name}"] for name in names])[:, None]
    x = jnp.asarray(golden["x_noise"])  # no two numbers of a pooling window are equal
    got = jax.jit(lambda x, masks: jxp.group_scores(f, x, masks, rules=jxp.CD_ACD))(x, masks)
    relevant, irrelevant = (
        np.concatenate([golden[f"{side}_{name}"] for name in names]) for side in ("nrel", "nirr")
    )
    equal(got, relevant, irrelevant, TOLERANCE["f4"])


def lstm_scores(size, key, mode):
    p, golden = cast(networks.draw_lstm(size), key), stored("lstm")
    spans = golden[f"{size}_spans"]
    positions = np.arange(len(p["words"]))
    masks = (spans[:, :1] <= positions) & (positions <= spans[:, 1:])
    f, rules = partial(networks.lstm, p), jxp.lstm_rules(bias_product=mode)
    got = jax.jit(lambda x, masks: jxp.group_scores(f, x, masks, rules=rules))(
        p["words"], masks[:, :, None]
    )
    equal(
        got,
        golden[f"{size}_{key}_{mode}_relevant"],
        golden[f"{size}_{key}_{mode}_irrelevant"],
        TOLERANCE[key],
    )


@pytest.mark.parametrize("mode", ["inclusive", "exclusive"])
@pytest.mark.parametrize("size", networks.LSTMS)
def test_lstm_rules_are_the_published(size, mode):
    lstm_scores(size, "f4", mode)


@pytest.mark.parametrize("mode", ["inclusive", "exclusive"])
@pytest.mark.parametrize("size", networks.LSTMS)
def test_lstm_rules_in_float64(x64, size, mode):
    lstm_scores(size, "f8", mode)


def bert_scores(case, key, variant):
    golden, p = stored("bert"), cast(networks.draw_bert(), key)
    rules = {"basic": jxp.CD_TRANSFORMER, "query_key": jxp.CD_TRANSFORMER_QK}[variant]
    attend = jnp.asarray(golden[f"{case}_attend"])
    masks = golden[f"{case}_masks"][:, :, None]
    f = partial(networks.bert, p, attend)
    got = jax.jit(lambda x, masks: jxp.group_scores(f, x, masks, rules=rules))(
        cast(golden[f"{case}_{key}_x"], key), masks
    )
    stacked = [jnp.stack(part["layers"], 1) for part in got]
    # Published shares are |r| / (|r| + |i| + 1e-8): in either dtype the sums are 1e-7 from f.
    sides = [f"{case}_{variant}_{side}_layers" for side in ("relevant", "irrelevant")]
    equal(stacked, golden[sides[0]], golden[sides[1]], TOLERANCE["f4"])
    sides = [f"{case}_{key}_{variant}_{side}" for side in ("relevant", "irrelevant")]
    equal([part["logits"] for part in got], golden[sides[0]], golden[sides[1]], TOLERANCE["f4"])


@pytest.mark.parametrize("variant", ["basic", "query_key"])
@pytest.mark.parametrize("case", ["whole", "padded"])
def test_transformer_rules_are_the_published(case, variant):
    bert_scores(case, "f4", variant)


@pytest.mark.parametrize("variant", ["basic", "query_key"])
def test_transformer_rules_in_float64(x64, variant):
    bert_scores("whole", "f8", variant)
