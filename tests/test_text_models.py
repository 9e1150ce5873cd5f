"""Text models: padding, pieces of the interface, words, and what ships."""

import functools
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import train_text_classifiers as script
from jaxplain import models
from jaxplain.models import BUNDLED, bundled_examples, load, text, trained, words
from jaxplain.types import JaxplainError

SHIPPED = Path(str(resources.files("jaxplain.models"))) / "bundled"
LENGTHS = (7, 16, 40)
# Sums over other padded lengths are grouped otherwise: some units in the last place of float32,
# on logits and gradients of size one.
ROUNDING = 1e-5


class Made(NamedTuple):
    """A small untrained model, its functions compiled."""

    module: text.TextClassifier
    params: Any
    embed: Any  # ids -> x
    score: Any  # (x, mask) -> logits
    hidden: Any  # (x, mask) -> states
    grad: Any  # (x, mask) -> gradient of the second logit


@pytest.fixture(scope="module", params=["transformer", "lstm", "cnn"])
def made(request):
    more: dict[str, dict[str, Any]] = dict(
        transformer=dict(pool="mean", max_length=40, layers=2, heads=2, inner=16),
        lstm=dict(pool="max", layers=2),
        cnn=dict(pool="max", windows=(1, 2, 3, 5)),
    )
    kind = request.param
    module = text.classifier(kind, vocabulary=30, width=8, classes=3, **more[kind])
    one = jnp.ones(4, jnp.int32), jnp.ones(4, bool)
    params = jax.jit(module.init)(jax.random.key(1), *one)["params"]
    # Embeddings of size one: the initial ones are so small that a leak would hide in rounding.
    params["embedding"]["embedding"] = jax.random.normal(jax.random.key(2), (30, 8))
    score = functools.partial(text.score, module, params)
    return Made(
        module,
        params,
        functools.partial(text.embed, module, params),
        jax.jit(score),
        jax.jit(functools.partial(text.hidden, module, params)),
        jax.jit(jax.grad(lambda x, mask: score(x, mask)[1])),
    )


IDS = np.array([3, 14, 15, 9, 2, 6, 5], np.int32)


def padded(length):
    """The same seven ids filled up to `length`, and their mask."""
    ids = np.zeros(length, np.int32)
    ids[: len(IDS)] = IDS
    return jnp.asarray(ids), jnp.asarray(np.arange(length) < len(IDS))


def test_padding_changes_nothing(made):
    results = []
    for length in LENGTHS:
        ids, mask = padded(length)
        x = made.embed(ids)
        grad = np.asarray(made.grad(x, mask))
        assert not grad[len(IDS) :].any()
        results.append((made.score(x, mask), grad[: len(IDS)]))
    for logits, grad in results[1:]:
        np.testing.assert_allclose(logits, results[0][0], atol=ROUNDING)
        np.testing.assert_allclose(grad, results[0][1], atol=ROUNDING)
    assert np.abs(results[0][1]).sum(axis=1).all()  # and every word does count


def test_what_lies_under_the_mask_changes_nothing(made):
    ids, mask = padded(16)
    x = np.asarray(made.embed(ids))
    noise = x.copy()
    noise[len(IDS) :] = 1e3
    for function in (made.score, made.hidden, made.grad):
        np.testing.assert_array_equal(function(noise, mask), function(x, mask))


def test_a_gap_in_the_mask_takes_the_word_out(made):
    """For the LSTM it had never been there; the others keep its place, their idea of order."""
    x = np.asarray(made.embed(jnp.asarray(padded(16)[0])))
    mask = np.arange(16) < len(IDS)
    mask[3] = False
    with_gap = made.score(x, mask)
    x = np.concatenate([np.delete(x, 3, axis=0), x[:1]])
    without = made.score(x, np.arange(16) < len(IDS) - 1)
    same = np.allclose(with_gap, without, atol=ROUNDING)
    assert same == isinstance(made.module.encoder, text.LSTM)


def test_embed_then_score_is_the_whole_model(made):
    ids, mask = padded(16)
    direct = jax.jit(made.module.apply)({"params": made.params}, ids, mask)
    np.testing.assert_allclose(made.score(made.embed(ids), mask), direct, atol=ROUNDING)


def test_hidden_gives_every_layer(made):
    ids, mask = padded(16)
    x = made.embed(ids)
    states = np.asarray(made.hidden(x, mask))
    encoder = made.module.encoder
    assert states.shape == (2 if isinstance(encoder, text.CNN) else 3, 16, 8)
    assert states.dtype == np.float32
    assert not states[:, len(IDS) :].any()
    assert np.abs(states[:, : len(IDS)]).sum(axis=(1, 2)).all()
    if not isinstance(encoder, text.Transformer):  # which adds positions
        np.testing.assert_array_equal(states[0], np.where(mask[:, None], x, 0))
    last = states[-1, : len(IDS)]
    pooled = last.mean(axis=0) if made.module.pool == "mean" else last.max(axis=0)
    head = jax.tree.map(np.asarray, made.params["head"])
    logits = pooled @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, made.score(x, mask), atol=ROUNDING)


def test_vmap_is_a_loop_and_jit_is_eager(made):
    x = np.asarray(jax.random.normal(jax.random.key(4), (3, 7, 8)))
    mask = np.arange(7)[None] < np.array([7, 1, 5])[:, None]
    loop = np.stack([made.score(a, b) for a, b in zip(x, mask, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(made.score))(x, mask), loop, atol=ROUNDING)
    eager = text.score(made.module, made.params, jnp.asarray(x[2]), jnp.asarray(mask[2]))
    np.testing.assert_allclose(eager, loop[2], atol=ROUNDING)


@pytest.mark.parametrize("length", [1, 2])
def test_texts_shorter_than_every_filter(made, length):
    x = made.embed(jnp.asarray(IDS[:length]))
    grad = np.asarray(made.grad(x, np.ones(length, bool)))
    assert np.isfinite(grad).all() and grad.any()


def test_no_word_at_all_is_finite(made):
    x, mask = np.ones((7, 8), np.float32), np.zeros(7, bool)
    np.testing.assert_array_equal(made.score(x, mask), made.params["head"]["bias"])
    assert not np.asarray(made.grad(x, mask)).any()


def test_the_transformer_refuses_more_words_than_it_has_positions():
    module = text.classifier(
        "transformer", vocabulary=9, width=8, classes=2, pool="mean", max_length=40
    )
    ids = jnp.ones(41, jnp.int32)
    with pytest.raises(JaxplainError, match="41 positions, and this model has 40"):
        jax.eval_shape(module.init, jax.random.key(0), ids, ids == 1)


def test_an_unknown_kind_is_refused():
    with pytest.raises(JaxplainError, match=r"'gru'.*transformer, lstm, cnn"):
        text.classifier("gru", vocabulary=3, width=4, classes=2, pool="max")


def test_load_refuses_what_is_no_model(tmp_path):
    with pytest.raises(JaxplainError, match=r"no model 'bertt'.*transformer, lstm, cnn"):
        load("bertt")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(JaxplainError, match=r"is no model \(notes.txt\).*config.json"):
        load(tmp_path)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A model that the script trained on a made-up language of ten words."""
    rng = np.random.default_rng(0)
    tables = {}
    for split, count in (("train", 512), ("dev", 64), ("test", 64)):
        labels = rng.integers(0, 2, count)
        sentences = []
        for label in labels:
            filler = rng.choice(list("abcdefgh"), rng.integers(4, 8)).tolist()
            filler.insert(rng.integers(len(filler)), ("bad", "good")[label])
            sentences.append(" ".join(filler))
        tables[split] = sentences, labels
    folder = tmp_path_factory.mktemp("trained")
    recipe = script.RECIPES["cnn"]._replace(
        width=16, learning_rate=1e-2, least=1, epochs=4, word_dropout=0.0
    )
    scores = script.train_one("cnn", tables, folder, recipe=recipe, seed=0)
    return folder / "cnn", scores


def test_the_script_learns(learned):
    _, scores = learned
    assert min(scores.values()) >= 95  # one word decides; a coin gives 50


def test_a_trained_folder_loads_as_it_was_measured(learned):
    folder, scores = learned
    model = load(folder)
    assert (model.name, model.labels) == ("cnn", ("negative", "positive"))
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {np.dtype(np.float32)}
    tokens = model.tokenize("a b c good d e f g")
    x = model.embed(model.params, tokens.ids)
    assert model.score(model.params, x, jnp.ones(8, bool)).argmax() == 1
    assert trained.read_card(folder)["accuracy"] == {k: round(v, 2) for k, v in scores.items()}


def test_a_folder_whose_files_do_not_belong_together_is_refused(learned, tmp_path):
    folder, _ = learned
    for name in ("card.json", "weights.msgpack"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(JaxplainError, match=r"no vocabulary.txt"):
        trained.read(tmp_path)
    (tmp_path / "vocabulary.txt").write_text("<pad>\n<unk>\none\n")
    with pytest.raises(JaxplainError, match="do not fit"):
        trained.read(tmp_path)
    for name in ("weights.msgpack", "card.json"):
        whole = (folder / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-9])
        with pytest.raises(JaxplainError, match="damaged"):
            trained.read(tmp_path)
        (tmp_path / name).write_bytes(whole)


def test_the_script_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXPLAIN_DATA", raising=False)
    with pytest.raises(SystemExit, match="set JAXPLAIN_DATA"):
        script.main(out=tmp_path)
    monkeypatch.setenv("JAXPLAIN_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match=r"not found.*train\.tsv"):
        script.main(out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_batches_hold_every_example_once():
    rng = np.random.default_rng(0)
    ids = [np.full(n, i + 2, np.int32) for i, n in enumerate(rng.integers(1, 129, 300))]
    examples = script.Examples(ids, np.arange(300) % 2)
    for order in (None, rng):
        seen = []
        for batch_ids, mask, labels, real in script.batches(examples, 16, order):
            assert batch_ids.shape == (16, batch_ids.shape[1]) and not batch_ids[~mask].any()
            rows = batch_ids[real, 0] - 2
            np.testing.assert_array_equal(labels[real], rows % 2)
            np.testing.assert_array_equal(mask.sum(1)[real], [len(ids[row]) for row in rows])
            assert not mask[~real].any()
            seen += rows.tolist()
        assert sorted(seen) == list(range(300))


def test_parameters_go_through_a_checkpoint(learned, tmp_path):
    params = load(learned[0]).params
    models.save(tmp_path / "params", params)
    back = models.restore(tmp_path / "params", like=params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_names_the_package_lacks_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'sava'"):
        models.sava  # type: ignore[attr-defined]  # noqa: B018


def test_bundled_sentences():
    examples = bundled_examples()
    texts = [example["text"] for example in examples]
    lengths = [len(words.words(text)) for text in texts]
    assert 55 <= len(texts) == len(set(texts)) <= 70
    assert sum(example["label"] for example in examples) * 2 == len(examples)
    assert min(lengths) == 3 and max(lengths) >= 40


def test_models_keep_their_type_where_double_precision_is_on(x64):
    for name in BUNDLED:
        model = load(name)
        x = model.embed(model.params, jnp.arange(5))
        assert jax.eval_shape(model.score, model.params, x, jnp.ones(5, bool)).dtype == "float32"


@pytest.mark.parametrize("name", BUNDLED)
class TestShipped:
    def test_card_and_size(self, name):
        card = json.loads((SHIPPED / name / "card.json").read_text())
        assert card["accuracy"]["dev"] >= 80
        assert card["data"]["examples"] == {"train": 67349, "dev": 872, "test": 1821}
        assert (SHIPPED / name / "weights.msgpack").stat().st_size <= 2_000_000

    def test_bundled_sentences_are_mostly_right(self, name):
        model = load(name)
        assert model.labels == ("negative", "positive") and model.max_length == 128
        ids = np.zeros((len(bundled_examples()), 64), np.int32)
        for row, example in zip(ids, bundled_examples(), strict=True):
            tokens = model.tokenize(example["text"])
            assert not tokens.truncated
            row[: len(tokens.ids)] = tokens.ids
        one = lambda i: model.score(model.params, model.embed(model.params, i), i != model.pad_id)
        logits = jax.jit(jax.vmap(one))(ids)
        right = logits.argmax(-1) == jnp.array([e["label"] for e in bundled_examples()])
        # Four in five on dev; the sentences ask for more negation and irony, and speak of things
        # that film reviews lack. 70% is three standard errors above chance for 62.
        assert right.mean() >= 0.7

    def test_the_card_tells_the_accuracy_on_dev(self, name):
        home = os.environ.get("JAXPLAIN_DATA")
        if not home:
            pytest.skip("JAXPLAIN_DATA is not set: the dev sentences are not in the repository")
        model = load(name)
        sentences, labels = script.read(Path(home) / "sst2" / "dev.tsv")
        ids = np.zeros((len(sentences), 64), np.int32)
        for row, sentence in zip(ids, sentences, strict=True):
            tokens = model.tokenize(sentence)
            row[: len(tokens.ids)] = tokens.ids
        one = lambda i: model.score(model.params, model.embed(model.params, i), i != model.pad_id)
        right = 100 * (jax.jit(jax.vmap(one))(ids).argmax(-1) == labels).mean()
        # One or two sentences lie so near the boundary that another machine's rounding decides.
        assert abs(right - trained.read_card(SHIPPED / name)["accuracy"]["dev"]) <= 0.2
