"""Prompts: tokenisation, BOS, pairs of equal length, padding, positions, spans, digest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mechattr.errors import InputError
from mechattr.transformer.prompts import Prompts, encode, token_id, tokenizer_of
from tests.transformer.tiny import tiny_tokenizer

CLEAN = "When Mary and John went to the store, John gave a drink to"
OTHER = "When Mary and John went to the store, Mary gave a drink to"
LABELS = (
    *("When", " Mary", " and", " John", " went", " to", " the", " store", ",", " John", " gave"),
    *(" a", " drink", " to"),
)


def stub(tokenizer):
    """What tokenising needs of a model."""
    return SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(d_vocab=len(tokenizer)))


@pytest.fixture(scope="module")
def model():
    return stub(tiny_tokenizer())


@pytest.fixture(scope="module")
def bos_model():
    return stub(tiny_tokenizer(bos=True))


def sentencepiece():
    """A tokenizer that puts a blank before whatever begins a text, as Llama 2's does."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ("<unk>", "▁When", "▁Mary", "▁and", "▁John", "▁", "Mary", "▁met", ",", "land")
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


class TestFromPairs:
    def test_tokens_labels_and_defaults(self, model):
        prompts = Prompts.from_pairs(model, [CLEAN], [OTHER])
        assert prompts.labels == (LABELS,)
        assert prompts.texts == (CLEAN,)
        assert prompts.lengths == (14,)
        assert prompts.target_positions == (13,)
        assert len(prompts) == 1
        assert not prompts.begins_with_bos
        assert prompts.counterfactual is not None
        assert prompts.counterfactual_labels is not None
        assert "".join(prompts.counterfactual_labels[0]) == OTHER
        differ = (prompts.tokens[0] != prompts.counterfactual[0]).nonzero().flatten().tolist()
        assert differ == [9]
        assert prompts.tokens[0].tolist() == model.tokenizer(CLEAN).input_ids
        assert prompts.tokens[0].dtype == torch.long

    def test_a_single_string_is_a_list_of_one(self, model):
        assert (
            Prompts.from_pairs(model, CLEAN, OTHER).digest()
            == Prompts.from_pairs(model, [CLEAN], [OTHER]).digest()
        )

    def test_prompts_may_differ_in_length_from_each_other(self, model):
        prompts = Prompts.from_pairs(model, [CLEAN, "The cat sat"], [OTHER, "The dog sat"])
        assert prompts.lengths == (14, 3)
        assert prompts.target_positions == (13, 2)

    def test_from_texts_has_no_counterfactuals(self, model):
        prompts = Prompts.from_texts(model, CLEAN, target_position=-2)
        assert prompts.counterfactual is None
        assert prompts.counterfactual_labels is None
        assert prompts.target_positions == (12,)

    def test_unequal_lengths_show_both_tokenisations_and_where_they_part(self, model):
        clean = ["The cat sat", "The cat sat on the mat"]
        other = ["The dog sat", "The cat xy on the mat"]
        with pytest.raises(InputError) as error:
            Prompts.from_pairs(model, clean, other)
        lines = str(error.value).splitlines()
        assert lines[0].startswith("Prompt 1: the clean prompt has 6 tokens, its counterfactual 8")
        assert lines[1].endswith("The| cat| sat| on| the| mat")
        assert lines[2].endswith("The| cat| |x|y| on| the| mat")
        assert lines[3].endswith("^ they part here, at position 2")
        column = lines[3].index("^")
        # The mark stands under the first character of the token at which they part.
        assert lines[1][column:].startswith(" sat|")
        assert lines[2][column:].startswith(" |x|")
        assert "same token length" in lines[4]

    def test_unequal_lengths_where_one_continues_the_other(self, model):
        with pytest.raises(InputError) as error:
            Prompts.from_pairs(model, "The cat", "The cat sat")
        lines = str(error.value).splitlines()
        assert lines[3].endswith("at position 2")
        assert lines[2][lines[3].index("^") :] == " sat"

    def test_unequal_lengths_where_the_first_token_differs(self, model):
        with pytest.raises(InputError, match="at position 0") as error:
            Prompts.from_pairs(model, "The cat", "When the cat")
        lines = str(error.value).splitlines()
        assert lines[1][lines[3].index("^") :] == "The| cat"

    def test_line_breaks_do_not_break_the_marks(self):
        model = stub(tiny_tokenizer(["\n", "\n\n"]))
        tokenizer = model.tokenizer
        newline = next(i for i in range(len(tokenizer)) if tokenizer.decode([i]) == "\n")
        the, cat = tokenizer("The cat").input_ids
        with pytest.raises(InputError) as error:
            Prompts.from_tokens(model, [[newline, the]], [[newline, cat, the]])
        lines = str(error.value).splitlines()
        assert lines[1].endswith(r"\n|The")
        assert lines[1][lines[3].index("^") :] == "The"

    @pytest.mark.parametrize(
        ("clean", "other", "message"),
        [
            (["The cat", "The dog"], ["The dog"], "2 clean prompts and 1 counterfactuals"),
            ([], [], "No clean prompts"),
            ("The cat", [], "No counterfactual prompts"),
            (["The cat", 3], None, "A clean prompt is int; expected a string"),
            (7, None, "clean is 7; expected a string or a list"),
            ("", None, "'' has no tokens"),
        ],
    )
    def test_bad_texts(self, model, clean, other, message):
        with pytest.raises(InputError, match=message):
            Prompts.from_pairs(model, clean, other)

    def test_a_model_without_tokenizer(self):
        with pytest.raises(InputError, match="SimpleNamespace carries no tokenizer"):
            tokenizer_of(SimpleNamespace(tokenizer=None))


class TestBos:
    def test_none_is_the_tokenizers_own_default(self, model, bos_model):
        assert not Prompts.from_texts(model, CLEAN).begins_with_bos
        prompts = Prompts.from_texts(bos_model, CLEAN)
        assert prompts.begins_with_bos
        assert prompts.labels[0] == ("<bos>", *LABELS)

    def test_forced_on_is_not_doubled(self, bos_model):
        prompts = Prompts.from_texts(bos_model, CLEAN, prepend_bos=True)
        assert prompts.labels[0] == ("<bos>", *LABELS)

    def test_forced_on_where_the_tokenizer_does_not_add_it(self):
        tokenizer = tiny_tokenizer()
        tokenizer.bos_token = "<eos>"  # as TransformerLens does where there is none
        assert not Prompts.from_texts(stub(tokenizer), CLEAN).begins_with_bos
        prompts = Prompts.from_texts(stub(tokenizer), CLEAN, prepend_bos=True)
        assert prompts.labels[0] == ("<eos>", *LABELS)
        assert prompts.begins_with_bos

    def test_forced_off(self, bos_model):
        prompts = Prompts.from_texts(bos_model, CLEAN, prepend_bos=False)
        assert prompts.labels[0] == LABELS
        assert not prompts.begins_with_bos

    def test_forced_on_without_a_bos_token(self, model):
        with pytest.raises(InputError, match="the tokenizer has no BOS token"):
            Prompts.from_texts(model, CLEAN, prepend_bos=True)

    @pytest.mark.parametrize(("prepend", "n_bos"), [(True, 1), (False, 1), (None, 1)])
    def test_a_bos_written_into_the_text_stays(self, prepend, n_bos):
        # As chat templates do; SmolLM2's begins with its BOS token, which is not added by default.
        tokenizer = tiny_tokenizer()
        tokenizer.bos_token = "<eos>"
        ids = encode(tokenizer, "<eos>The cat", prepend)
        assert (ids == tokenizer.bos_token_id).sum() == n_bos
        assert ids.tolist()[1:] == tokenizer("The cat").input_ids

    def test_a_written_and_an_added_bos(self, bos_model):
        tokenizer = bos_model.tokenizer
        bos = tokenizer.bos_token_id
        assert encode(tokenizer, "<bos>The", None).tolist()[:2] == [bos, bos]
        assert encode(tokenizer, "<bos>The", False).tolist()[:2] != [bos, bos]
        assert encode(tokenizer, "<bos>The", False).tolist()[0] == bos

    def test_only_bos_is_no_prompt_when_refused(self, bos_model):
        with pytest.raises(InputError, match="no tokens"):
            encode(bos_model.tokenizer, "", False)


class TestFromTokens:
    def rows(self, model):
        return [torch.tensor(model.tokenizer(text).input_ids) for text in (CLEAN, "The cat sat")]

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padded_batches(self, model, side):
        rows = self.rows(model)
        batch = torch.zeros(2, 14, dtype=torch.long)
        mask = torch.zeros(2, 14, dtype=torch.long)
        for i, row in enumerate(rows):
            where = slice(14 - len(row), 14) if side == "left" else slice(0, len(row))
            batch[i, where] = row
            mask[i, where] = 1
        other = batch.clone()
        other[1, mask[1].nonzero()[1]] = model.tokenizer(" dog").input_ids[0]
        prompts = Prompts.from_tokens(model, batch, other, attention_mask=mask)
        expected = Prompts.from_pairs(model, [CLEAN, "The cat sat"], [CLEAN, "The dog sat"])
        assert prompts.digest() == expected.digest()
        assert prompts.labels == expected.labels
        assert prompts.counterfactual_labels == expected.counterfactual_labels
        first = Prompts.from_tokens(model, batch, attention_mask=mask, target_position=1)
        assert first.target_positions == (1, 1)

    def test_lists_and_arrays(self, model):
        rows = self.rows(model)
        digest = Prompts.from_tokens(model, rows).digest()
        assert Prompts.from_tokens(model, [row.tolist() for row in rows]).digest() == digest
        assert Prompts.from_tokens(model, [row.numpy() for row in rows]).digest() == digest

    def test_later_changes_of_the_callers_tensor_do_not_matter(self, model):
        batch = self.rows(model)[0][None]
        prompts = Prompts.from_tokens(model, batch)
        digest = prompts.digest()
        batch[:] = 0
        assert prompts.digest() == digest

    @pytest.mark.parametrize("mask", [[1, 0, 1], [0, 1, 0]])
    def test_padding_inside_or_on_both_sides(self, model, mask):
        with pytest.raises(InputError, match="padding must be on one side"):
            Prompts.from_tokens(model, [[3, 4, 5]], attention_mask=torch.tensor([mask]))

    @pytest.mark.parametrize(
        ("tokens", "mask", "message"),
        [
            ([], None, "list is empty"),
            ([3, 4], None, r"token shape \(\)"),
            ([[[3]]], None, r"token shape \(1, 1\)"),
            ([[]], None, "expected whole numbers|no tokens"),
            ([[3.5]], None, "expected whole numbers"),
            ([[3, 4]], [[0, 0]], "Prompt 0 has no tokens"),
            ([[3, 4]], [[1, 1, 1]], r"attention_mask has shape \(1, 3\)"),
            ([[3, 4], [5]], [[1, 1], [1, 0]], "attention_mask has shape"),
            ([[3, 10_000]], None, "Token id 10000 is outside .* attention_mask"),
            ([[3, -100]], None, "Token id -100 is outside"),
        ],
    )
    def test_bad_tokens(self, model, tokens, mask, message):
        mask = None if mask is None else torch.tensor(mask)
        with pytest.raises(InputError, match=message):
            Prompts.from_tokens(model, tokens, attention_mask=mask)

    def test_unequal_counts(self, model):
        with pytest.raises(InputError, match="2 prompts and 1 counterfactuals"):
            Prompts.from_tokens(model, [[3], [4]], [[3]])


class TestPositions:
    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            (-1, (13, 2)),
            (0, (0, 0)),
            (2, (2, 2)),
            ([-2, 1], (12, 1)),
            (np.int64(-3), (11, 0)),
            (torch.tensor([3, 0]), (3, 0)),
        ],
    )
    def test_within(self, model, wanted, expected):
        prompts = Prompts.from_texts(model, [CLEAN, "The cat sat"], target_position=wanted)
        assert prompts.target_positions == expected
        assert all(type(position) is int for position in prompts.target_positions)

    @pytest.mark.parametrize("wanted", [3, -4, [0, 3]])
    def test_outside(self, model, wanted):
        message = r"outside prompt 1, which has 3 tokens \(-3 to 2\): The\| cat\| sat"
        with pytest.raises(InputError, match=message):
            Prompts.from_texts(model, [CLEAN, "The cat sat"], target_position=wanted)

    def test_one_a_prompt(self, model):
        with pytest.raises(InputError, match="Got 1 target positions for 2 prompts"):
            Prompts.from_texts(model, [CLEAN, "The cat sat"], target_position=[0])


class TestSpans:
    def test_occurrences(self, model):
        prompts = Prompts.from_pairs(model, [CLEAN], [OTHER])
        assert prompts.span(" Mary") == ((1,),)
        assert prompts.span("John") == ((3,),)
        assert prompts.span("John", which=1) == ((9,),)
        assert prompts.span("John", which=-1) == ((9,),)
        assert prompts.span("the store") == ((6, 7),)
        assert prompts.span("ary and Jo") == ((1, 2, 3),)
        assert prompts.span(CLEAN) == (tuple(range(14)),)

    def test_each_prompt_has_its_own(self, model):
        prompts = Prompts.from_texts(model, [CLEAN, "The cat sat on the store"])
        assert prompts.span(" store") == ((7,), (5,))

    @pytest.mark.parametrize(("text", "which"), [("Tom", 0), ("John", 2), ("John", -3), ("", 0)])
    def test_absent(self, model, text, which):
        with pytest.raises(InputError, match=r"Prompt 0 has \d+ occurrences of .*When\| Mary"):
            Prompts.from_texts(model, CLEAN).span(text, which=which)

    def test_with_bos(self, bos_model):
        assert Prompts.from_texts(bos_model, CLEAN).span(" Mary") == ((2,),)


class TestSelection:
    def test_some_of_the_prompts(self, model):
        prompts = Prompts.from_pairs(
            model,
            [CLEAN, "The cat sat", "The dog sat"],
            [OTHER, "The dog sat", "The cat sat"],
            target_position=[3, 0, 1],
        )
        cases: list[tuple[Any, tuple[int, ...]]] = [
            (0, (0,)),
            (-1, (2,)),
            (np.int64(1), (1,)),
            (slice(1, None), (1, 2)),
            ([2, 0], (2, 0)),
        ]
        for index, expected in cases:
            chosen = prompts[index]
            assert chosen.texts == tuple(prompts.texts[i] for i in expected)
            assert chosen.target_positions == tuple(prompts.target_positions[i] for i in expected)
            assert chosen.counterfactual is not None
            assert prompts.counterfactual is not None
            for k, i in enumerate(expected):
                assert torch.equal(chosen.counterfactual[k], prompts.counterfactual[i])

    def test_without_counterfactuals(self, model):
        assert Prompts.from_texts(model, [CLEAN, "The cat"])[1:].counterfactual is None

    @pytest.mark.parametrize("index", [slice(2, None), []])
    def test_empty(self, model, index):
        with pytest.raises(InputError, match="selection is empty"):
            Prompts.from_texts(model, [CLEAN, "The cat"])[index]


class TestDigest:
    def test_it_tells_whatever_changes_the_computation(self, model):
        def of(*args, **settings):
            return Prompts.from_pairs(model, *args, **settings).digest()

        base = of([CLEAN], [OTHER])
        others = [
            of([OTHER], [CLEAN]),
            of([CLEAN], None),
            of([CLEAN], [CLEAN]),
            of([CLEAN, OTHER], None),
            of([CLEAN], [OTHER], target_position=-2),
            of([CLEAN, CLEAN], [OTHER, OTHER]),
        ]
        assert of([CLEAN], [OTHER]) == base
        assert len({base, *others}) == len(others) + 1

    def test_it_is_stable(self):
        prompts = Prompts.from_tokens(stub(tiny_tokenizer()), [[3, 4, 5]], [[3, 4, 6]])
        assert prompts.digest() == "9859fb4b713c89e9"


class TestLabels:
    def test_repr(self, model, bos_model):
        text = repr(Prompts.from_pairs(model, [CLEAN], [OTHER]))
        assert "1 of 14 tokens, with counterfactuals, no BOS: 'When Mary" in text
        text = repr(Prompts.from_texts(bos_model, ["The cat", "The cat sat"]))
        assert "2 of 3 to 4 tokens, no counterfactuals, begin with BOS" in text

    def test_sentencepiece_tokens_keep_their_blanks(self):
        prompts = Prompts.from_texts(stub(sentencepiece()), "When Mary and John met Maryland")
        assert prompts.labels == (("When", " Mary", " and", " John", " met", " Mary", "land"),)
        assert prompts.span(" Mary", which=1) == ((5,),)

    def test_blanks_before_punctuation_stay(self):
        model = stub(tiny_tokenizer([" ."]))
        assert Prompts.from_texts(model, "The cat .").labels == (("The", " cat", " ."),)

    def test_characters_of_several_tokens(self):
        # Byte-level pieces of one character have no text of their own.
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        pieces = {p: i for i, p in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE(pieces, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        model = stub(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
        assert Prompts.from_texts(model, "a日b").labels == (("a", "�", "�", "�", "b"),)


class TestTokenId:
    def test_strings_and_ids(self, model):
        tokenizer = model.tokenizer
        size = len(tokenizer)
        (mary,) = tokenizer(" Mary").input_ids
        assert token_id(tokenizer, " Mary", size) == mary
        answers: list[Any] = [mary, np.int64(mary)]
        for same in answers:
            assert token_id(tokenizer, same, size) == mary
            assert type(token_id(tokenizer, same, size)) is int

    def test_bos_that_the_tokenizer_adds_is_no_part_of_an_answer(self, bos_model):
        tokenizer = bos_model.tokenizer
        assert tokenizer.decode([token_id(tokenizer, " Mary", len(tokenizer))]) == " Mary"

    def test_several_tokens(self, model):
        with pytest.raises(InputError, match=r"' Maryland' is 2 tokens, \[' Mary', 'land'\]"):
            token_id(model.tokenizer, " Maryland", 90)

    def test_a_forgotten_blank_is_guessed(self, model):
        message = "With a leading space, ' drink', it is one token"
        with pytest.raises(InputError, match=message):
            token_id(model.tokenizer, "drink", 90)

    def test_a_blank_too_many_is_guessed(self):
        tokenizer = sentencepiece()
        assert token_id(tokenizer, "John", len(tokenizer)) == 4
        with pytest.raises(InputError, match="Without a leading space, 'John', it is one token"):
            token_id(tokenizer, " John", len(tokenizer))

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ("", "'' is 0 tokens"),
            ("É", "not in the tokenizer's vocabulary"),
            (-1, "outside the vocabulary of 60"),
            (60, "outside the vocabulary of 60"),
            (1.0, "must be a string or a token id; got 1.0"),
            (True, "must be a string or a token id; got True"),
            (None, "must be a string or a token id; got None"),
        ],
    )
    def test_bad_answers(self, model, answer, message):
        with pytest.raises(InputError, match=message):
            token_id(model.tokenizer, answer, 60)

    def test_a_token_that_the_model_has_no_output_for(self, model):
        (cat,) = model.tokenizer(" cat").input_ids
        with pytest.raises(InputError, match=f"the model has only {cat} outputs"):
            token_id(model.tokenizer, " cat", cat)

    def test_the_unknown_token_itself_may_be_asked_for(self, model):
        tokenizer = model.tokenizer
        assert token_id(tokenizer, "<unk>", len(tokenizer)) == tokenizer.unk_token_id
