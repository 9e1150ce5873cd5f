"""Contextual decomposition of a trained BERT and real sentences: every token, every span."""

import csv
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain as jxp
from jaxplain import models
from jaxplain.methods import groups
from tests.helpers import quick_compile

pytestmark = pytest.mark.slow

TABLES = {"CD_TRANSFORMER": jxp.CD_TRANSFORMER, "CD_TRANSFORMER_QK": jxp.CD_TRANSFORMER_QK}
LENGTH = 12  # tokens, so that all spans of 20 sentences take seconds
COUNT = 20


@pytest.fixture(scope="module")
def minilm():
    """Both tables' splits of every span, `[COUNT, spans, C]`, the logits, and the sentences' sizes.

    The logits are those of the model alone, in a program of its own.
    """
    if "JAXPLAIN_DATA" not in os.environ:
        pytest.skip("JAXPLAIN_DATA is not set: it is the directory with minilm-sst2/ and sst2/")
    home = Path(os.environ["JAXPLAIN_DATA"])
    model = models.load(home / "minilm-sst2")
    with (home / "sst2" / "dev.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        tokens = [model.tokenize(row["sentence"]).ids for row in rows]
    tokens = [ids for ids in tokens if len(ids) <= LENGTH][:COUNT]
    sizes = np.array([len(ids) for ids in tokens])
    ids = np.stack([np.pad(i, (0, LENGTH - len(i)), constant_values=model.pad_id) for i in tokens])
    mask = np.arange(LENGTH) < sizes[:, None]
    spans = jnp.asarray(groups.spans(LENGTH))

    def one(params, ids, mask):
        x = model.embed(params, ids)
        f = lambda x: model.score(params, x, mask)
        split = lambda span, rules: jxp.contextual_decomposition(f, x, span, rules=rules)
        return {t: jax.vmap(lambda s, r=r: split(s, r))(spans) for t, r in TABLES.items()}

    plain = lambda params, ids, mask: model.score(params, model.embed(params, ids), mask)
    with quick_compile():
        every = jax.jit(lambda p, *rows: jax.lax.map(lambda row: one(p, *row), rows))
        splits = every(model.params, ids, mask)
        logits = jax.jit(jax.vmap(plain, (None, 0, 0)))(model.params, ids, mask)
    return splits, np.asarray(logits), sizes


def real(sizes):
    """Which spans lie within which sentences: `[COUNT, spans]`."""
    return groups.span_ends(LENGTH)[:, 1] <= sizes[:, None]


@pytest.mark.parametrize("table", TABLES)
def test_every_token_and_span_of_sentences_sums_to_the_logits(minilm, table):
    splits, logits, sizes = minilm
    relevant, irrelevant = splits[table]
    within = real(sizes)
    assert within.sum() == np.sum(sizes * (sizes + 1) // 2) > 500
    gaps = np.abs(relevant + irrelevant - logits[:, None])[within]
    # Float32 states of size up to 10 through six layers; the bound is the one we promise.
    assert gaps.max() < 1e-4
    # So that nothing which calls all relevant, or all irrelevant, passes.
    assert np.abs(relevant)[within].max() > 1
    assert np.abs(irrelevant)[within].max() > 1


def test_what_holds_attention_and_what_splits_it_differ(minilm):
    splits, _, sizes = minilm
    held, split = (splits[table].relevant[real(sizes)] for table in TABLES)
    assert np.median(np.abs(held - split)) > 1e-2
