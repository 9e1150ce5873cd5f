"""Words of plain text, their numbers, and text that is split already."""

import os
from pathlib import Path

import numpy as np
import pytest

from examples import train_text_classifiers as script
from jaxplain.models import words
from jaxplain.types import JaxplainError


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("It's a good film.", "it 's a good film ."),
        ("I don't think so, do you?", "i do n't think so , do you ?"),
        ("We can't, won't and cannot.", "we ca n't , wo n't and can not ."),
        ("I'd've said they're fine!", "i 'd 've said they 're fine !"),
        ('A "great" film (really)', "a `` great '' film ( really )"),
        ("“Great” – it isn’t…", "`` great '' -- it is n't ..."),
        ("Mr. Smith's U.S. film", "mr. smith 's u.s. film"),
        ("No. Stop it.", "no . stop it ."),
        ("well...no,but yes--maybe", "well ... no , but yes -- maybe"),
        ("10,000 fans paid $9.50 each", "10,000 fans paid $ 9.50 each"),
        ("the actors' work in the '60s", "the actors ' work in the '60s"),
        ("a feel-good comedy/drama?!", "a feel-good comedy/drama ?!"),
        ("cliché", "cliché"),
        ("don't.'", "do n't . '"),
        ("  \t\n ", ""),
    ],
)
def test_words(raw, expected):
    assert words.words(raw) == expected.split()
    assert words.words(expected) == expected.split()


def test_words_of_any_characters_keep_the_text_and_are_stable():
    rng = np.random.default_rng(0)
    alphabet = [*"ab.,'\"-!?()$%/é 9", "n't", "'s", "..."]
    for _ in range(2000):
        raw = "".join(rng.choice(alphabet, 12))
        split = words.words(raw)
        # Double quotes change their signs, so all quotes are left out of the comparison.
        kept, given = (s.translate(dict.fromkeys(map(ord, "\"'` "))) for s in ("".join(split), raw))
        assert kept == given
        assert words.words(" ".join(split)) == split, raw


def test_tokenize_numbers_and_truncates():
    vocabulary = words.count_words([["good", "film"], ["good"]])
    assert vocabulary.words == ("<pad>", "<unk>", "good", "film")
    tokens = words.tokenize(vocabulary, 3, "Good Zyzzyva film")
    assert tokens.ids.tolist() == [2, 1, 3] and tokens.ids.dtype == np.int32
    assert tokens.pieces == ["good", "zyzzyva", "film"] and not tokens.truncated
    cut = words.tokenize(vocabulary, 3, "good good good film")
    assert cut.ids.tolist() == [2, 2, 2] and len(cut.pieces) == 3 and cut.truncated


def test_bad_texts_and_vocabularies_are_refused():
    with pytest.raises(JaxplainError, match="empty"):
        words.tokenize(words.vocabulary(["<pad>", "<unk>"]), 3, "  ")
    for listed in (["a", "b"], ["<pad>", "<unk>", "a", "a"]):
        with pytest.raises(JaxplainError, match="count_words"):
            words.vocabulary(listed)


def test_words_leave_split_text_alone():
    home = os.environ.get("JAXPLAIN_DATA")
    if not home:
        pytest.skip("JAXPLAIN_DATA is not set: the sentences are not in the repository")
    changed = set()
    for split in script.SPLITS:
        for sentence in script.read(Path(home) / "sst2" / f"{split}.tsv")[0]:
            split_again = words.words(sentence)
            assert words.words(" ".join(split_again)) == split_again
            if split_again != sentence.split():
                changed |= set(sentence.split()) - set(split_again)
    # Abbreviations that are words too, so that their full stop is read as the sentence's.
    assert changed <= {"no.", "al.", "pa.", "a."}
