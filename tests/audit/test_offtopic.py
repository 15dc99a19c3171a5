"""Off-topic passages: about something else, and of just the length asked for."""

from __future__ import annotations

import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from mechattr.audit.offtopic import OffTopic, content_words
from mechattr.errors import InputError
from tests.transformer.tiny import tiny_tokenizer

BUILT_IN = OffTopic()


def pattern(title: str, text: str) -> str:
    return f"\n\n[2] {title}\n{text}" if title else f"\n\n[2] {text}"


class Pieces:
    """A tokenizer of pieces of up to three letters, marks and blanks by themselves; each "ß" is
    three tokens, as a character of several bytes may be."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        assert not add_special_tokens
        found = re.findall(r" ?[^\W\dß]{1,3}|[^ß]|ß", text)
        return SimpleNamespace(input_ids=[i for p in found for i in ([1] * (3 if p == "ß" else 1))])


PIECES = Pieces()


def length(block: str, tokenizer=PIECES) -> int:
    return len(tokenizer(block, add_special_tokens=False).input_ids)


# --- the texts ------------------------------------------------------------------------------------


def test_the_texts_are_many_short_and_different():
    assert len(BUILT_IN) == 80
    titles = [title for title, _ in BUILT_IN.texts]
    assert len(set(titles)) == 80
    assert all(70 <= len(text.split()) <= 110 for _, text in BUILT_IN.texts)
    assert all(text.isprintable() and text.endswith((".", "?")) for _, text in BUILT_IN.texts)


def test_they_are_about_different_things():
    words = [content_words(f"{title} {text}") for title, text in BUILT_IN.texts]
    shared = [len(a & b) for i, a in enumerate(words) for b in words[:i]]
    assert np.mean(shared) < 1.5
    assert max(shared) <= 10
    assert min(len(own) for own in words) > 25


def test_content_words():
    found = content_words("The Bees were called BEE in 1796; gas, glass and an ox?")
    assert found == {"bee", "1796", "gas", "glass"}


# --- picking --------------------------------------------------------------------------------------


def test_texts_about_the_same_thing_are_not_picked():
    avoid = "How do bees make honey?\n\nA honeybee dances on the comb. Flowers, nectar, wax, queen."
    for seed in range(30):
        picked = BUILT_IN.pick(np.random.default_rng(seed), avoid, 10)
        assert "Honeybees" not in [title for title, _ in picked]
        words = [content_words(f"{title} {text}") for title, text in picked]
        assert not any(own & content_words(avoid) for own in words)


def test_of_texts_that_all_share_words_the_least_overlapping_half_is_drawn_from():
    texts = [" ".join(["alpha", "beta", "gamma", "delta"][: i + 1]) for i in range(4)]
    collection = OffTopic(texts)
    seen: Counter[str] = Counter()
    for seed in range(200):
        picked = collection.pick(np.random.default_rng(seed), "alpha beta gamma delta", 1)
        seen[picked[0][1]] += 1
    assert set(seen) == set(texts[:2])
    assert min(seen.values()) > 60


def test_beyond_that_half_the_least_overlap_comes_first():
    texts = [" ".join(["alpha", "beta", "gamma", "delta"][: i + 1]) for i in range(4)]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        picked = [text for _, text in OffTopic(texts).pick(rng, "alpha beta gamma delta", 4)]
        assert set(picked[:2]) == set(texts[:2])
        assert picked[2:] == texts[2:]


def test_no_text_comes_twice_while_there_are_others():
    rng = np.random.default_rng(0)
    assert len(set(BUILT_IN.pick(rng, "glaciers and bread", 80))) == 80
    assert Counter(Counter(BUILT_IN.pick(rng, "", 170)).values()) == {2: 70, 3: 10}
    assert BUILT_IN.pick(rng, "", 0) == []


def test_the_generator_alone_decides():
    first, again, other = (
        BUILT_IN.pick(np.random.default_rng(seed), "tides", 6) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_negative_count_is_refused():
    with pytest.raises(InputError, match="count is -1"):
        BUILT_IN.pick(np.random.default_rng(0), "", -1)


# --- a matched length -----------------------------------------------------------------------------


@pytest.mark.parametrize("n_tokens", [8, 9, 10, 11, 23, 60, 61, 62, 63, 150, 151, 600, 2001])
def test_the_length_is_matched_exactly(n_tokens):
    for title, text in BUILT_IN.texts[::9]:
        block = BUILT_IN.matched(PIECES, title, text, pattern, n_tokens)
        assert length(block) == n_tokens


def test_a_cut_text_begins_as_it_did():
    title, text = BUILT_IN.texts[0]
    block = BUILT_IN.matched(PIECES, title, text, pattern, 60)
    assert block.startswith("\n\n[2] Glaciers\nA glacier forms where")
    assert pattern(title, text).startswith(block)


def test_a_text_that_is_too_short_is_gone_on_with():
    collection = OffTopic([("One", "un deux trois."), ("Two", "ichi ni san."), "uno dos tres."])
    block = collection.matched(PIECES, *collection.texts[1], pattern, 46)
    assert block.startswith("\n\n[2] Two\nichi ni san. uno dos tres. un deux trois. ichi ni")
    assert length(block) == 46


def test_what_goes_on_is_about_something_else_too():
    """By the same measure as what is picked: the half that overlaps least, the least first."""
    collection = OffTopic(
        ["wolf apple", "bear apple pear", "lynx apple pear plum", "mole", "hare fig", "seal apple"]
    )
    text = collection.texts[3]
    block = collection.matched(PIECES, *text, pattern, 60, avoid="Apples, pears and plums?")
    assert block.startswith("\n\n[2] mole hare fig mole seal apple hare fig mole seal apple hare")


def test_a_long_passage_holds_no_word_of_the_record():
    avoid = "How do bees make honey?\n\nA honeybee dances. Flowers, nectar, wax, queen, bread, tea."
    taken = content_words(avoid)
    shared = {t: content_words(" ".join(t)) & taken for t in BUILT_IN.texts}
    assert sum(map(bool, shared.values())) > 5
    here = 0
    for title, text in BUILT_IN.pick(np.random.default_rng(0), avoid, 12):
        assert not shared[title, text]
        block = BUILT_IN.matched(PIECES, title, text, pattern, 900, avoid)
        assert length(block) == 900
        assert not content_words(block) & taken
        own = BUILT_IN.matched(PIECES, title, text, pattern, 900)
        here += bool(content_words(own) & taken)
        assert own[:300] == block[:300]
    assert here > 2, "in their order they would have held some"


def test_a_single_text_is_repeated():
    block = OffTopic(["so it goes."]).matched(PIECES, "", "so it goes.", pattern, 40)
    assert block.startswith("\n\n[2] so it goes. so it goes. so it")
    assert length(block) == 40


@pytest.mark.parametrize(("n_tokens", "head"), [(12, "Carnivorous plants"), (11, "Carnivorous")])
def test_a_title_that_is_too_long_is_cut(n_tokens, head):
    block = BUILT_IN.matched(PIECES, "Carnivorous plants of", "a b c", pattern, n_tokens)
    assert block.split("\n")[2].removeprefix("[2] ") == head
    assert length(block) == n_tokens


def test_and_dropped_at_last():
    block = BUILT_IN.matched(PIECES, "Carnivorous", "ab cd ef", pattern, 7)
    assert length(block) == 7
    assert block == "\n\n[2] ab cd"


def test_where_no_cut_fits_the_nearest_is_taken():
    """Each character is three tokens, and a mark would be one: but not the first of all."""
    text = "ßßßßßßßß"
    found = {n: OffTopic([text]).matched(PIECES, "", text, pattern, n) for n in range(6, 13)}
    assert all(-2 <= length(block) - n <= 0 for n, block in found.items()), found
    assert length(found[9]) == 9
    assert length(found[12]) == 12


def test_longer_by_little_is_better_than_much_shorter():
    """A word of nine tokens that can't be cut: at eight, one too many beats eight too few."""

    class Whole(Pieces):
        def __call__(self, text, add_special_tokens=True):
            n = 9 * text.count("ß") + (0 if "ß" in text else len(text.split("]")[-1].strip()) * 9)
            return SimpleNamespace(input_ids=[1] * n)

    for n_tokens, expected in [(9, 9), (8, 9), (7, 9), (6, 0), (17, 18)]:
        block = OffTopic(["ß"]).matched(Whole(), "", "ß ß ß", pattern, n_tokens)
        assert length(block, Whole()) == expected


def test_a_real_kind_of_tokenizer():
    tokenizer = tiny_tokenizer()
    for n_tokens in range(20, 120, 7):
        for title, text in BUILT_IN.texts[::20]:
            block = BUILT_IN.matched(tokenizer, title, text, pattern, n_tokens)
            assert length(block, tokenizer) == n_tokens


def test_a_pattern_longer_than_asked_for_is_refused():
    with pytest.raises(InputError, match="has 6 tokens in this prompt, more than the 3"):
        BUILT_IN.matched(PIECES, "", "a b", pattern, 3)
    with pytest.raises(InputError, match="n_tokens is 0"):
        BUILT_IN.matched(PIECES, "", "a b", pattern, 0)


def test_nothing_to_go_on_with_is_refused():
    silent = lambda text, add_special_tokens: SimpleNamespace(input_ids=[])  # noqa: E731
    with pytest.raises(InputError, match="have no tokens"):
        BUILT_IN.matched(silent, "", "a b", pattern, 30)


# --- the user's own -------------------------------------------------------------------------------


def test_texts_of_the_users_own():
    collection = OffTopic([" On rivers. ", ("Hills", "On hills.")])
    assert collection.texts == (("", "On rivers."), ("Hills", "On hills."))
    picked = collection.pick(np.random.default_rng(0), "rivers", 1)
    assert picked == [("Hills", "On hills.")]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "the list is empty"),
        (["a river", "  "], "text 1 is empty"),
        ([("Rivers", "")], "text 0 is empty"),
        ("a river", "must be a list of texts"),
        (3, "must be a list of texts"),
        ([3], "text 0 is int"),
        ([("a", "b", "c")], "text 0 is tuple"),
        ([("a", None)], "must be strings"),
    ],
)
def test_what_is_no_text_is_refused(texts, said):
    with pytest.raises(InputError, match=said):
        OffTopic(texts)
