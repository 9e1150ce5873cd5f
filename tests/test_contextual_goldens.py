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
from tests.helpers import quick_compile

GOLDENS = Path(__file__).parent / "goldens"

# Of float32 and of float64 runs of one computation: rounding, some tens of sums deep. Two tables
# that differ are 5e-2 apart here, in one group or another.
TOLERANCE = {"f4": 1e-5, "f8": 1e-10}
# Of BERT in either dtype: the published shares of a bias are |r| / (|r| + |i| + 1e-8), which keeps
# the published parts from summing to f.
SHARED = 1e-5
SIDES = ("relevant", "irrelevant")


def stored(name):
    with np.load(GOLDENS / f"contextual_{name}.npz") as file:
        return {key: file[key] for key in file.files}


def equal(got, wanted, tolerance):
    """Both parts, each number to `tolerance`."""
    for name, mine, theirs in zip(SIDES, got, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance, err_msg=name)


def compared(masks, key, deep):
    """Which groups to compare. Of a group of everything the rest is rounding, and its share of a
    bias, where both parts are small, is not: in a deep network float32 loses 1e-2 by that. The
    published code holds an exact 0 there; here float64 says that the rules are the same.
    """
    whole = masks.reshape(len(masks), -1).all(1)
    return ~whole if deep and key == "f4" else np.ones_like(whole)


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


def scores(f, x, masks, rules):
    """Both parts of f(x), for all groups."""
    with quick_compile():
        return jax.jit(lambda x, masks: jxp.group_scores(f, x, masks, rules=rules))(x, masks)


@pytest.mark.parametrize("name", networks.CNNS)
def test_cd_acd_is_the_published_on_residual_networks(name):
    check_cnn(name, "f4")


def test_cd_acd_in_float64(x64):
    check_cnn("resnet18", "f8")


def check_cnn(name, key):
    f, x, golden = cnn(name, key)
    got = scores(f, x, golden[f"{name}_masks"][:, None], jxp.CD_ACD)
    chosen = compared(golden[f"{name}_masks"], key, deep=name == "resnet18")
    wanted = [golden[f"{name}_{key}_{side}"][chosen] for side in SIDES]
    tolerance = {"f4": 1e-5, "f8": 1e-8}[key]  # 1e-8: see `compared`
    equal([part[chosen] for part in got], wanted, tolerance)
    np.testing.assert_allclose((got[0] + got[1])[0], golden[f"{name}_{key}_logits"], atol=tolerance)


def test_cd_acd_is_the_published_on_its_mnist_network():
    f, golden = mnist()
    names = ("full", "top", "tile")
    masks = np.stack([golden[f"mask_{name}"] for name in names])[:, None]
    x = jnp.asarray(golden["x_noise"])  # no two numbers of a pooling window are equal
    got = scores(f, x, masks, jxp.CD_ACD)
    wanted = [
        np.concatenate([golden[f"{side}_{name}"] for name in names]) for side in ("nrel", "nirr")
    ]
    equal(got, wanted, TOLERANCE["f4"])


@pytest.mark.parametrize("mode", ["inclusive", "exclusive"])
@pytest.mark.parametrize("size", networks.LSTMS)
def test_lstm_rules_are_the_published(size, mode):
    check_lstm(size, "f4", mode)


@pytest.mark.parametrize("mode", ["inclusive", "exclusive"])
@pytest.mark.parametrize("size", networks.LSTMS)
def test_lstm_rules_in_float64(x64, size, mode):
    check_lstm(size, "f8", mode)


def check_lstm(size, key, mode):
    p, golden = cast(networks.draw_lstm(size), key), stored("lstm")
    spans, place = golden[f"{size}_spans"], np.arange(len(p["words"]))
    masks = (spans[:, :1] <= place) & (place <= spans[:, 1:])
    got = scores(
        partial(networks.lstm, p), p["words"], masks[:, :, None], jxp.lstm_rules(bias_product=mode)
    )
    wanted = [golden[f"{size}_{key}_{mode}_{side}"] for side in SIDES]
    equal(got, wanted, TOLERANCE[key])
    logits = (got[0] + got[1])[0] + p["out_bias"]  # the published scores leave this bias out
    np.testing.assert_allclose(logits, golden[f"{size}_{key}_logits"], atol=TOLERANCE[key])


@pytest.mark.parametrize("variant", ["basic", "query_key"])
def test_transformer_rules_are_the_published(variant):
    check_bert(variant, "f4")


@pytest.mark.parametrize("variant", ["basic", "query_key"])
def test_transformer_rules_in_float64(x64, variant):
    check_bert(variant, "f8")


def check_bert(variant, key):
    """Every layer's output and the logits, of whole and of padded text, by one program."""
    golden, p = stored("bert"), cast(networks.draw_bert(), key)
    rules = {"basic": jxp.CD_TRANSFORMER, "query_key": jxp.CD_TRANSFORMER_QK}[variant]

    @jax.jit
    def explain(attend, x, masks):
        f = lambda x: networks.bert(p, attend, x)
        return jxp.group_scores(f, x, masks, rules=rules)

    for case in ("whole", "padded"):
        groups = golden[f"{case}_masks"]
        masks = np.resize(groups, (4, groups.shape[1], 1))  # the only group of `padded`, 4 times
        with quick_compile():
            got = explain(golden[f"{case}_attend"], cast(golden[f"{case}_{key}_x"], key), masks)
        chosen = np.flatnonzero(compared(groups, key, deep=True))
        got = jax.tree.map(lambda v, chosen=chosen: np.asarray(v)[chosen], got)
        layers = [np.stack(part["layers"], 1) for part in got]
        wanted = [golden[f"{case}_{variant}_{side}_layers"][chosen] for side in SIDES]
        equal(layers, wanted, SHARED * np.abs(wanted).max())
        wanted = [golden[f"{case}_{key}_{variant}_{side}"][chosen] for side in SIDES]
        logits = [part["logits"] for part in got]
        equal(logits, wanted, SHARED)
        np.testing.assert_allclose(
            (logits[0] + logits[1])[0], golden[f"{case}_{key}_logits"], atol=SHARED
        )
