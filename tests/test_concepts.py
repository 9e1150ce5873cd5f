"""Information about words and concepts, against a slow replica, samples, and bad input."""

import jax
import numpy as np
import pytest

from jaxplain import models
from jaxplain.methods.concepts import concept_information
from jaxplain.models.words import single_tokens
from jaxplain.types import JaxplainError
from tests.helpers import close, within_errors

LAYERS, LENGTH, WIDTH = 3, 5, 4
compiled = jax.jit(concept_information)


def log_density(other, word, sigma):
    """The learned Gaussian of one word, as it is written."""
    width = len(word)
    square = float(np.sum((other - word) ** 2))
    return -square / (2 * sigma**2) - width * np.log(sigma) - width / 2 * np.log(2 * np.pi)


def replica(sigma, x, concept, reference):
    """A_i, A_c and their difference, one word of one layer at a time, in float64."""
    word, about = np.zeros(sigma.shape), np.zeros(sigma.shape)
    for place in np.ndindex(*sigma.shape):
        own, s = x[place[-1]], sigma[place]
        expected = np.mean([log_density(other, own, s) for other in reference])
        word[place] = log_density(own, own, s) - expected
        about[place] = np.mean([log_density(other, own, s) for other in concept]) - expected
    return word, about, word - about


def example(seed=0, far=0.0):
    draw = np.random.default_rng(seed)
    normal = lambda *shape: (draw.normal(size=shape) + far).astype(np.float32)
    sigma = np.exp(draw.normal(size=(LAYERS, LENGTH))).astype(np.float32)
    return sigma, normal(LENGTH, WIDTH), normal(7, WIDTH), normal(9, WIDTH)


@pytest.mark.parametrize("far", [0.0, 300.0])
def test_it_is_the_replicas(far):
    sigma, *words = example(far=far)
    got = compiled(sigma, *words)
    close(got[:3], tuple(replica(sigma, *(w.astype(np.float64) for w in words))))
    assert (got.concept < 0).any() and (got.concept > 0).any()
    assert got.concept_count.tolist() == [7] * LENGTH
    assert got.reference_count.tolist() == [9] * LENGTH
    assert not got.censored.any()


def test_standard_errors_are_those_over_draws_of_the_sets():
    sigma, x, _, _ = example()
    draws, many = 4000, 200
    rng = np.random.default_rng(1)
    sets = rng.normal(size=(2, draws, 20, WIDTH)).astype(np.float32)
    each = jax.jit(jax.vmap(concept_information, (None, None, 0, 0)))(sigma, x, *sets)
    for value, error in zip(each[:3], each[3:6], strict=True):
        spread = np.std(np.asarray(value, np.float64), axis=0)
        # Of 4000 draws, a standard deviation is known to 1 / sqrt(8000), times 1.6 or so for the
        # heavy tail of a chi square: 5 of these are 9%. The mean of estimates from 20 words is 2%
        # low.
        np.testing.assert_allclose(np.mean(error, axis=0), spread, rtol=0.11)
    # One large set is within its own errors of what all draws say.
    truth = tuple(np.asarray(v, np.float64).mean(axis=0) for v in each[:3])
    got = compiled(sigma, x, *rng.normal(size=(2, many, WIDTH)).astype(np.float32))
    within_errors(got[:3], truth, got[3:6])


def test_masks_leave_words_out():
    sigma, x, concept, reference = example()
    keep, own = np.arange(7) != 2, ~np.eye(LENGTH, 9, dtype=bool)
    got = compiled(sigma, x, concept, reference, concept_mask=keep, reference_mask=own)
    want = [
        np.stack(column, axis=-1)
        for column in zip(
            *(
                compiled(sigma[:, t : t + 1], x[t : t + 1], concept[keep], reference[own[t]])
                for t in range(LENGTH)
            ),
            strict=True,
        )
    ]
    for g, w in zip(got, want, strict=True):
        close(g, w.reshape(g.shape))
    assert got.reference_count.tolist() == [8] * LENGTH


def test_a_word_of_its_own_concept_is_at_distance_0():
    sigma, x, _, reference = example(far=300.0)
    got = compiled(sigma, x, x[:1], reference)
    assert float(got.beyond[0, 0]) == 0 and (got.beyond[:, 1:] > 0).all()
    close(got.concept[:, 0], got.word[:, 0])


def test_padding_is_0_whatever_it_holds_and_changes_nothing():
    sigma, *words = example()
    alone = compiled(sigma, *words)
    padded = np.concatenate([sigma, np.zeros((LAYERS, 2), np.float32)], axis=1)
    rows = np.concatenate([words[0], np.full((2, WIDTH), 7, np.float32)])
    real = np.arange(LENGTH + 2) < LENGTH
    got = compiled(padded, rows, *words[1:], mask=real, censored=np.array(True))
    for name, value, want in zip(got._fields, got, alone, strict=True):
        assert not np.asarray(value)[..., LENGTH:].any(), name
        if name != "censored":
            close(value[..., :LENGTH], want)
    assert got.censored[..., :LENGTH].all()


def test_a_set_without_a_word_is_nan_and_counted():
    sigma, x, concept, reference = example()
    none = np.zeros((0, WIDTH), np.float32)
    got = compiled(sigma, x, none, reference)
    assert np.isnan(got.concept).all() and np.isnan(got.beyond).all()
    assert np.isfinite(got.word).all() and np.isfinite(got.word_error).all()
    assert not got.concept_count.any()
    got = compiled(sigma, x, concept, none)
    assert np.isnan(got.word).all() and np.isnan(got.concept).all()
    assert np.isfinite(got.beyond).all() and not got.reference_count.any()
    one = compiled(sigma, x, concept[:1], reference)  # no error of one word's mean
    assert np.isfinite(one.beyond).all() and np.isnan(one.beyond_error).all()


def test_layers_change_the_scale_only():
    sigma, *words = example()
    got = concept_information(sigma, *words)  # one operation at a time, as users may
    scale = sigma[:1] ** 2 / sigma**2
    for value in got[:6]:
        close(value, value[:1] * scale)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (dict(sigma=np.ones(4, np.float32)), "one sigma a word"),
        (dict(sigma=np.float32(1)), "one sigma a word"),
        (dict(x=np.ones((LENGTH, WIDTH), np.int32)), "x is int32"),
        (dict(x=np.ones(LENGTH, np.float32)), "one row a word"),
        (dict(concept=np.ones((2, 3), np.float32)), "same embedding"),
        (dict(mask=np.ones(4, bool)), "one bool a word"),
        (dict(reference_mask=np.ones(4, bool)), r"does not broadcast to \[5, 9\]"),
        (dict(censored=np.ones((2, 5), bool)), r"does not broadcast to \[3, 5\]"),
    ],
)
def test_what_does_not_fit_is_refused(changed, what):
    names = ("sigma", "x", "concept", "reference")
    given = dict(zip(names, example(), strict=True)) | changed
    with pytest.raises(JaxplainError, match=what):
        concept_information(**given)


def test_single_tokens_counts_what_it_leaves_out():
    model = models.load("lstm")
    found = single_tokens(model, ["good", "bad", "qzxv", "do n't", "good", " ", "Good"])
    assert found.words == ("good", "bad")
    assert found.ids.tolist() == [int(model.tokenize(w).ids[0]) for w in ("good", "bad")]
    assert (found.unknown, found.several) == (("qzxv",), ("do n't", " "))
    assert found.repeated == ("good", "Good")
