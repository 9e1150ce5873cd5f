"""BERT from Hugging Face directories: parity with torch and Captum, formats, and refusals.

The goldens and what they are: goldens/make_bert.py.
"""

import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxplain.methods.path import integrated_gradients
from jaxplain.models.bert import load_bert, save_bert
from jaxplain.models.bert_encoder import ACTIVATIONS
from jaxplain.types import JaxplainError

HERE = Path(__file__).parent / "goldens"
TINY = HERE / "tiny_bert"
GOLD = np.load(HERE / "bert_tiny.npz")
POOLINGS = ("pooler", "cls", "mean")


def padded(ids, length):
    """Give ids and mask, `[length]` each."""
    return np.pad(ids, (0, length - len(ids))), np.arange(length) < len(ids)


def both(model, params, ids, length=24):
    """Give the hidden states and logits of one text; one program for each model and length."""
    return _both(
        params, *padded(ids, length), embed=model.embed, score=model.score, hidden=model.hidden
    )


@partial(jax.jit, static_argnames=("embed", "score", "hidden"))
def _both(params, ids, mask, *, embed, score, hidden):
    x = embed(params, ids)
    return hidden(params, x, mask), score(params, x, mask)


def batch(gold, length):
    ids, masks = zip(*(padded(gold[f"ids{i}"], length) for i in range(3)), strict=True)
    return jnp.stack(ids), jnp.stack(masks)


def explanations(model, ids, masks, targets):
    """Integrated gradients `[B, T, D]` of the target logits from zeros, with 32 nodes."""

    def one(params, ids, mask, target):
        f = lambda x: model.score(params, x, mask)[target]
        return integrated_gradients(f, model.embed(params, ids), steps=32).scores

    return jax.jit(jax.vmap(one, (None, 0, 0, 0)))(model.params, ids, masks, targets)


def relative(got, want):
    """Give the largest error as a share of the largest score."""
    return np.abs(np.asarray(got) - want).max() / np.abs(want).max()


@pytest.fixture(scope="module", params=POOLINGS)
def tiny(request):
    return request.param, load_bert(TINY, pooling=request.param)


# Each layer rounds its state, of size up to 4, a few times, at 2.4e-7 for the size of 4: the
# accumulated error must stay well below 1e-5. A wrong epsilon, gelu or order is 1e-3 or more.
STATE = 1e-5
# In double precision nothing but float64's own rounding separates us from torch.
STATE64 = 1e-12


def parity_of_states(model, params, pooling, tolerance):
    for i in range(3):
        states, logits = both(model, params, GOLD[f"ids{i}"])
        want = GOLD[f"hidden{i}"]
        assert states.dtype == params["classifier"]["bias"].dtype
        np.testing.assert_allclose(states[:, : want.shape[1]], want, rtol=0, atol=tolerance)
        np.testing.assert_allclose(logits, GOLD[f"{pooling}_logits{i}"], rtol=0, atol=tolerance)


def test_every_layer_equals_torch(tiny):
    pooling, model = tiny
    parity_of_states(model, model.params, pooling, STATE)


def test_every_layer_equals_torch_in_double_precision(tiny, x64):
    pooling, model = tiny
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), model.params)
    parity_of_states(model, params, pooling, STATE64)


def test_integrated_gradients_equal_captum(tiny):
    pooling, model = tiny
    ids, masks = batch(GOLD, 24)
    targets = np.array([GOLD[f"{pooling}_logits{i}"].argmax() for i in range(3)])
    scores = explanations(model, ids, masks, targets)
    for i in range(3):
        tokens = len(GOLD[f"ids{i}"])
        # 32 float32 gradients of a function of float32 states: about 1e-6 is rounding.
        assert relative(scores[i, :tokens], GOLD[f"{pooling}_scores{i}"]) < 1e-5
        assert not np.any(scores[i, tokens:])


@pytest.fixture(scope="module")
def minilm():
    if "JAXPLAIN_DATA" not in os.environ:
        pytest.skip("JAXPLAIN_DATA is not set: it is the directory that has minilm-sst2/")
    return load_bert(Path(os.environ["JAXPLAIN_DATA"]) / "minilm-sst2")


def test_minilm_every_layer_equals_torch(minilm):
    gold = np.load(HERE / "bert_minilm.npz")
    for i, text in enumerate(gold["texts"]):
        tokens = minilm.tokenize(str(text))
        np.testing.assert_array_equal(tokens.ids, gold[f"ids{i}"])
        states, logits = both(minilm, minilm.params, tokens.ids, 20)
        # Absolute: states reach 10.4, whose float32 spacing is 9.5e-7, and torch's own float32
        # states lie up to 2.8e-6 from its float64 ones.
        np.testing.assert_allclose(logits, gold[f"logits{i}"], rtol=0, atol=1e-5)
        if (name := f"hidden{i}") in gold:
            states = states[:, : len(tokens.ids)]
            np.testing.assert_allclose(states, gold[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_minilm_integrated_gradients_equal_captum(minilm):
    gold = np.load(HERE / "bert_minilm.npz")
    ids, masks = batch(gold, 20)
    targets = np.array([gold[f"logits{i}"].argmax() for i in range(3)])
    scores = explanations(minilm, ids, masks, targets)
    for i in range(3):
        tokens = len(gold[f"ids{i}"])
        # Our rounding in float32 against Captum in float64.
        assert relative(scores[i, :tokens].sum(-1), gold[f"token_scores{i}"]) < 1e-4
        if f"scores{i}" in gold:
            assert relative(scores[i, :tokens], gold[f"scores{i}"]) < 1e-4


def test_tokens_equal_transformers(tiny):
    _, model = tiny
    for i, text in enumerate(GOLD["texts"]):
        tokens = model.tokenize(str(text))
        assert tokens.ids.dtype == np.int32 and not tokens.truncated
        np.testing.assert_array_equal(tokens.ids, GOLD[f"ids{i}"])  # stored padding is off
    assert tokens.pieces[:4] == ["[CLS]", "a", "plot", "of"]
    assert len(tokens.pieces) == len(tokens.ids)
    long = model.tokenize("good " * 30)
    assert long.truncated and len(long.ids) == model.max_length == 24
    assert long.pieces[-1] == "[SEP]"
    assert not model.tokenize("good " * 22).truncated
    assert (model.pad_id, model.unk_id, model.mask_id, model.special_ids) == (0, 1, 4, (0, 2, 3))
    assert model.labels == ("negative", "neutral", "positive")
    assert model.name == "tiny_bert"


def test_padding_changes_nothing(tiny):
    _, model = tiny
    ids = GOLD["ids0"]
    states, logits = both(model, model.params, ids, len(ids))
    longer, same_logits = both(model, model.params, ids)
    # Sums over the keys run in another order.
    np.testing.assert_allclose(same_logits, logits, rtol=0, atol=2e-6)
    np.testing.assert_allclose(longer[:, : len(ids)], states, rtol=0, atol=2e-6)
    assert not np.any(longer[:, len(ids) :])


def test_masked_positions_are_never_read(tiny):
    _, model = tiny
    ids, mask = padded(GOLD["ids0"], 24)
    x = model.embed(model.params, ids)

    @jax.jit
    def values(x):
        score = lambda x: model.score(model.params, x, mask)
        return score(x), jax.jacrev(score)(x)

    logits, gradient = values(jnp.where(mask[:, None], x, jnp.nan))
    np.testing.assert_array_equal(logits, values(x)[0])
    assert not np.any(gradient[:, ~mask])
    assert np.all(np.any(gradient[:, mask] != 0, axis=(0, 2)))


def test_embeddings_are_the_words_alone(tiny):
    _, model = tiny
    x = model.embed(model.params, jnp.array([7, 9, 7]))
    np.testing.assert_array_equal(x[0], x[2])
    np.testing.assert_array_equal(
        x,
        load_file(TINY / "model.safetensors")["bert.embeddings.word_embeddings.weight"][[7, 9, 7]],
    )


def test_too_many_tokens_are_refused(tiny):
    _, model = tiny
    x = jnp.zeros((25, 16))
    with pytest.raises(JaxplainError, match="24 positions and was given 25"):
        model.score(model.params, x, jnp.ones(25, bool))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_transformers(name):
    x = np.linspace(-4, 4, 17, dtype=np.float32)
    got = ACTIVATIONS[name](jnp.asarray(x))
    # A few float32 roundings of numbers up to 4, and a tanh or erfc good to some units.
    np.testing.assert_allclose(got, GOLD[f"activation_{name}"], rtol=0, atol=2e-6)


def copied(to, *, config=None, tensors=None, without=()):
    """Copy the tiny directory with some of its configuration or tensors changed."""
    shutil.copytree(TINY, to)
    values = json.loads((TINY / "config.json").read_text()) | (config or {})
    values = {k: v for k, v in values.items() if k not in without}
    (to / "config.json").write_text(json.dumps(values))
    if tensors is not None:
        save_file(tensors, to / "model.safetensors")
    return to


def weights():
    return load_file(TINY / "model.safetensors")


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert p.dtype == q.dtype == jnp.float32
        np.testing.assert_array_equal(p, q)


def test_spellings_and_bystanders(tmp_path):
    def old(name):
        name = name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma")
        return name.replace("LayerNorm.bias", "LayerNorm.beta")

    tensors = {old(k): v for k, v in weights().items()}
    tensors["embeddings.position_ids"] = np.arange(24)[None]
    tensors["cls.predictions.bias"] = np.zeros(51, np.float32)
    tensors["cls.seq_relationship.weight"] = np.zeros((2, 16), np.float32)
    copied(tmp_path / "m", tensors=tensors)
    same(load_bert(tmp_path / "m").params, load_bert(TINY).params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_floats_become_float32(tmp_path, dtype):
    copied(tmp_path / "m", tensors={k: v.astype(jnp.dtype(dtype)) for k, v in weights().items()})
    want = jax.tree.map(lambda p: p.astype(dtype).astype(jnp.float32), load_bert(TINY).params)
    same(load_bert(tmp_path / "m").params, want)


def test_shards(tmp_path):
    path = copied(tmp_path / "m")
    (path / "model.safetensors").unlink()
    names = sorted(weights())
    place = {name: f"model-0000{1 + (i > 9)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(place.values()):
        save_file({k: v for k, v in weights().items() if place[k] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    same(load_bert(path).params, load_bert(TINY).params)
    (path / place[names[0]]).unlink()
    refused(path, "model-00001-of-00002.safetensors is missing")


def test_pooling_is_found(tmp_path):
    without = {k: v for k, v in weights().items() if "pooler" not in k}

    def pooling(path):
        model = load_bert(path)
        _, logits = both(model, model.params, GOLD["ids0"])
        return min(POOLINGS, key=lambda p: np.abs(logits - GOLD[f"{p}_logits0"]).max())

    assert pooling(TINY) == "pooler"
    assert pooling(copied(tmp_path / "a", config={"pooling": "mean"})) == "mean"
    assert pooling(copied(tmp_path / "b", tensors=without)) == "cls"
    assert pooling(copied(tmp_path / "c", config={"pooling": "mean"}, tensors=without)) == "mean"


def refused(path, *words, **options):
    with pytest.raises(JaxplainError) as caught:
        load_bert(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "roberta"}, ["model_type 'roberta'"]),
        ({"architectures": ["BertForTokenClassification"]}, ["BertForTokenClassification"]),
        ({"position_embedding_type": "relative_key"}, ["'relative_key'", '"absolute"']),
        ({"is_decoder": True}, ["is_decoder"]),
        ({"hidden_act": "gelu_10"}, ["'gelu_10'", "gelu_new"]),
        ({"pooling": "max"}, ["'max'", "pooler, cls, mean"]),
        ({"num_attention_heads": 5}, ["hidden_size 16", "num_attention_heads 5"]),
        ({"id2label": {"0": "bad", "1": "good"}}, ["id2label", "3 outputs"]),
        ({"num_hidden_layers": 3}, ["lacks 16 tensors", "encoder.layer.2", "13 more"]),
        ({"num_hidden_layers": 1}, ["16 tensors that", "encoder.layer.1"]),
        ({"intermediate_size": 64}, ["encoder.layer.0.intermediate", "[32, 16]", "[64, 16]"]),
        ({"vocab_size": 50}, ["tokenizer.json", "51", "50"]),
    ],
)
def test_configurations_that_do_not_fit_are_refused(tmp_path, config, words):
    if config == {"vocab_size": 50}:
        tensors = weights()
        name = "bert.embeddings.word_embeddings.weight"
        path = copied(tmp_path / "m", config=config, tensors=tensors | {name: tensors[name][:50]})
    else:
        path = copied(tmp_path / "m", config=config)
    refused(path, *words)


def test_files_that_do_not_fit_are_refused(tmp_path):
    refused(tmp_path / "none", str(tmp_path / "none"), "no directory")
    refused(tmp_path, "config.json is missing")
    refused(copied(tmp_path / "key", without=["layer_norm_eps"]), "no layer_norm_eps")
    for file in ("model.safetensors", "tokenizer.json"):
        path = copied(tmp_path / f"no-{file}")
        (path / file).unlink()
        refused(path, f"{file} is missing", "save_pretrained")
        path = copied(tmp_path / f"bad-{file}")
        (path / file).write_bytes((TINY / file).read_bytes()[:1000])
        refused(path, str(path / file), "fetch it again")
    (path / "config.json").write_text("{")
    refused(path, "config.json", "JSON")


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    def path(name, more=(), drop="nothing"):
        tensors = {k: v for k, v in weights().items() if drop not in k} | dict(more)
        return copied(tmp_path / name, tensors=tensors)

    refused(path("head", drop="classifier"), "no classifier", "finetune_bert.py", "labels=")
    refused(path("value", drop="layer.1.attention.self.value.bias"), "layer.1.attention.self.value")
    extra = np.zeros(3, np.float32)
    refused(path("more", {"bert.adapter.weight": extra}), "adapter.weight", "no use")
    refused(path("twice", {"classifier.bias": extra, "bert.classifier.bias": extra}), "another")
    eight = np.zeros((3, 16), np.int8)
    refused(path("int8", {"classifier.weight": eight}), "classifier.weight", "I8", "quantised")


def test_missing_libraries_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    refused(TINY, "tokenizers", "pip install 'jaxplain[hf]'")


def test_a_new_head(tmp_path):
    headless = {k: v for k, v in weights().items() if "classifier" not in k}
    path = copied(tmp_path / "m", tensors=headless)
    model = load_bert(path, labels=("no", "yes"), pooling="mean")
    assert model.labels == ("no", "yes")
    np.testing.assert_array_equal(both(model, model.params, GOLD["ids0"])[1], [0, 0])
    refused(path, "labels is empty", labels=())


def test_saved_directories_load(tmp_path):
    model = load_bert(TINY, labels=("no", "yes"), pooling="mean")
    params = model.params | {
        "classifier": jax.tree.map(lambda p: p + 1, model.params["classifier"])
    }
    save = partial(save_bert, base=TINY, labels=model.labels, pooling="mean")
    save(tmp_path / "a" / "m", params)
    again = load_bert(tmp_path / "a" / "m")
    same(again.params, params)
    assert again.labels == ("no", "yes")
    got, want = (both(m, params, GOLD["ids2"])[1] for m in (again, model))
    np.testing.assert_array_equal(got, want)

    pooled = load_bert(TINY)
    save_bert(tmp_path / "b", pooled.params, base=TINY, labels=pooled.labels, pooling="pooler")
    written = load_file(tmp_path / "b" / "model.safetensors")
    assert written.keys() == weights().keys()  # as transformers names them
    for name, value in weights().items():
        np.testing.assert_array_equal(written[name], value)

    for path, tree, words in (
        (tmp_path / "b", params, "exists"),
        (tmp_path / "c", {k: params[k] for k in params if k != "layer_1"}, "no layer_1/query"),
        (tmp_path / "c", params | {"embeddings_norm": jnp.ones(3)}, "embeddings_norm"),
    ):
        with pytest.raises(JaxplainError, match=words):
            save(path, tree)
    assert not (tmp_path / "c").exists()


def test_example_finetunes(tmp_path, monkeypatch, capsys):
    from examples import finetune_bert

    generator = np.random.default_rng(0)
    (tmp_path / "sst2").mkdir()
    for name, rows in (("train", 64), ("dev", 20), ("test", 20)):
        lines = ["sentence\tlabel"]
        for _ in range(rows):
            label = generator.integers(2)
            filler = " ".join(generator.choice(["the", "film", "was", "very"], 3))
            lines.append(f'{filler} {("bad", "good")[label]} "\t{label}')  # a quote is a character
        (tmp_path / "sst2" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("JAXPLAIN_DATA", str(tmp_path))
    finetune_bert.main(
        base=TINY, out=tmp_path / "out", steps=30, batch_size=16, rate=1e-2, length=16
    )
    printed = capsys.readouterr().out
    assert "dev accuracy 100.0%" in printed and "test accuracy 100.0%" in printed
    model = load_bert(tmp_path / "out")
    for text, label in (("the film was good", "positive"), ("was very bad", "negative")):
        _, logits = both(model, model.params, model.tokenize(text).ids)
        assert model.labels[int(logits.argmax())] == label
    with pytest.raises(JaxplainError, match="exists"):
        finetune_bert.main(base=TINY, out=tmp_path / "out")
