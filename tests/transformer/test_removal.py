"""RemovalGame against the model's own forward pass, one prompt at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mechattr as ma
from mechattr.transformer import gates, ragged, scoring
from mechattr.transformer.memory import OutOfMemoryError
from mechattr.transformer.model import Face
from mechattr.transformer.pieces import Piece
from mechattr.transformer.removal import RemovalGame, token_log_probs_of
from mechattr.transformer.trie import ROOT, Span
from tests import oracles
from tests.oracles import assert_agree, is_bridge, shared_model
from tests.transformer import tiny
from tests.transformer.test_engine_hygiene import assert_same, state

MODEL = pytest.mark.parametrize("name", oracles.MODELS)
OPERATOR = pytest.mark.parametrize("operator", ["remove", "mask", "replace"])
ONE = ("llama-bridge", *["gpt2-hooked"] * tiny.HAS_HOOKED)
FEW = pytest.mark.parametrize("name", ONE)

A = Piece("a", " Mary went to the store", " Tom had a")
B = Piece("b", " John sat on the mat.", " in the park good xyz.")
C = Piece("c", " Mary", " was")
D = Piece("d", " Mary", " Anna and Paul")
PIECES = ("When", A, B, " and", C, D, " Anna gave", " a")
"""Texts between players and not; players side by side, of the same text, of several lengths."""
ANSWER = " drink to Mary, and a book"
STATEMENTS = ((0, 9), (9, 15), (15, 26))

MASKS = torch.tensor(list(itertools.product([0, 1], repeat=4)))


def make(name: str, operator: Any = "remove", **settings: Any) -> RemovalGame:
    settings = {"statements": STATEMENTS, **settings}
    pieces = settings.pop("pieces", PIECES)
    return RemovalGame(shared_model(name), pieces, ANSWER, operator=operator, **settings)


def ids(model: Any, text: str) -> list[int]:
    return list(model.tokenizer(text).input_ids)


def tokens_of(model: Any, mask: Sequence[int], operator: str) -> Tensor:
    """The prompt's tokens, without the game's own bookkeeping."""
    out: list[int] = []
    present = dict(zip("abcd", mask, strict=True))
    for part in PIECES:
        if isinstance(part, str):
            out += ids(model, part)
        elif present[part.name] or operator == "mask":
            out += ids(model, part.text)
        elif operator == "replace":
            out += ids(model, str(part.replacement))
    return torch.tensor(out)


def owners(model: Any) -> Tensor:
    """Of each position of the full prompt, its player; -1 for none."""
    out = []
    numbers = iter(range(4))
    for part in PIECES:
        text, owner = (part, -1) if isinstance(part, str) else (part.text, next(numbers))
        out += [owner] * len(ids(model, text))
    return torch.tensor(out)


def plain(model: Any, prompt: Tensor, hooks: Any = ()) -> Tensor:
    """[answer token] log-probabilities from one whole run of one prompt."""
    answer = torch.tensor(ids(model, ANSWER))
    tokens = torch.cat([prompt, answer])
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        wide = torch.promote_types(model.W_U.dtype, torch.float32)
        logs = model(tokens[None])[0].to(wide).log_softmax(-1)
    return logs[torch.arange(len(prompt) - 1, len(tokens) - 1), answer].double()


def closing(owner: Tensor, mask: Sequence[float], n_tokens: int) -> Any:
    """A hook that masks attention to absent players from outside them, on the whole prompt."""
    owner = torch.cat([owner, torch.full((n_tokens - len(owner),), -1)])
    share = torch.tensor([*mask, 1.0], dtype=torch.float64)[owner]
    inside = (owner[:, None] == owner) & (owner >= 0)
    weight = torch.where(inside, 1.0, share[None])

    def close(scores: Tensor, hook: Any) -> Tensor:
        return scores + weight.log().to(scores.dtype)

    return (lambda point: point.endswith("hook_attn_scores"), close)


def expected(name: str, operator: str, masks: Tensor = MASKS) -> Tensor:
    """[mask, answer token], each mask by itself."""
    model = shared_model(name)
    out = []
    for mask in masks.tolist():
        prompt = tokens_of(model, mask, operator)
        hooks = []
        if operator == "mask":
            n_tokens = len(prompt) + len(ids(model, ANSWER))
            hooks = [closing(owners(model), mask, n_tokens)]
        out.append(plain(model, prompt, hooks))
    return torch.stack(out)


def by_statement(values: Tensor) -> Tensor:
    """The tiny tokenizer's tokens: " drink", " to" | " Mary", "," | " and", " a", " book"."""
    return torch.stack([values[:, :2].sum(1), values[:, 2:4].sum(1), values[:, 4:].sum(1)], 1)


def shared(game: RemovalGame, **settings: Any) -> RemovalGame:
    """The game with every shared beginning kept, however short."""
    game.scorer.budget = replace(game.scorer.budget, **{"overhead": 0.0, **settings})
    return game


# --- values -----------------------------------------------------------------------------------


@MODEL
@OPERATOR
def test_every_mask_is_what_the_model_says_of_that_prompt(name, operator):
    want = expected(name, operator)
    assert float(want.std(0).min()) > 0.02
    for game in (make(name, operator), shared(make(name, operator))):
        assert_agree(game.token_log_probs(MASKS), want)
        assert_agree(game(MASKS), by_statement(want))


@MODEL
def test_soft_masks_weigh_attention(name):
    masks = torch.rand(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    masks[0, 1], masks[1, 2] = 0, 1
    game = shared(make(name, "mask"))
    assert_agree(game.token_log_probs(masks), expected(name, "mask", masks))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_mask_is_a_plain_attention_mask(family):
    """As Hugging Face takes it, positions kept."""
    model = shared_model(f"{family}-bridge")
    hf = tiny.tiny_hf(family, vocab_size=len(model.tokenizer))
    answer, owner = torch.tensor(ids(model, ANSWER)), owners(model)
    prompt = tokens_of(model, (1, 1, 1, 1), "mask")
    tokens = torch.cat([prompt, answer])[None]
    want = []
    for mask in MASKS[1:]:  # nothing at all is seen of a fully masked beginning
        seen = torch.ones_like(tokens)
        seen[0, : len(owner)] = torch.cat([mask, torch.ones(1).long()])[owner]
        with torch.no_grad(), tiny._Float64Softmax():
            positions = torch.arange(tokens.shape[1])[None]
            logs = hf(tokens, attention_mask=seen, position_ids=positions).logits[0]
        logs = logs.log_softmax(-1)
        want.append(logs[torch.arange(len(prompt) - 1, tokens.shape[1] - 1), answer])
    assert_agree(make(f"{family}-bridge", "mask").token_log_probs(MASKS[1:]), torch.stack(want))


@FEW
@OPERATOR
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_tiny_budgets_give_the_same(name, operator, chunk):
    want = make(name, operator)(MASKS)
    game = shared(make(name, operator), call_tokens=5, ground_tokens=7, read_rows=3)
    game.scorer.chunk = chunk
    assert_agree(game(MASKS), want)


@MODEL
@OPERATOR
def test_where_rows_must_start_alike_the_values_are_the_same(name, operator, monkeypatch):
    want = shared(make(name, operator), overhead=6.0)
    monkeypatch.setattr(scoring, "can_be_ragged", lambda *_: False)
    got = shared(make(name, operator), overhead=6.0)
    assert_agree(got(MASKS), want(MASKS))
    assert ragged.can_be_ragged(want.face, torch.as_tensor(want.layout.full))


@FEW
def test_a_model_whose_rows_must_start_alike_is_found_out(name, monkeypatch):
    """Blocks that take no account of where a row's window starts."""
    family, _, cls = name.partition("-")
    model = {"hooked": tiny.tiny_hooked, "bridge": tiny.tiny_bridge}[cls](family)
    positions = ragged.Places.positions
    monkeypatch.setattr(
        ragged.Places, "positions", lambda self, *cells: positions(self, *cells) + 1
    )
    game = shared(RemovalGame(model, PIECES, ANSWER), overhead=6.0)
    assert not ragged.can_be_ragged(game.face, torch.as_tensor(game.layout.full))
    monkeypatch.undo()
    assert_agree(game(MASKS).sum(1), make(name)(MASKS).sum(1))


@FEW
@OPERATOR
def test_one_row_at_a_time_when_memory_runs_out(name, operator, monkeypatch):
    want = make(name, operator)(MASKS)
    game = make(name, operator)
    run, sizes = Face.run_block, set()

    def failing(self: Face, layer: int, resid: Tensor, *args: Any, **settings: Any) -> Any:
        sizes.add(len(resid))
        if len(resid) > 1:
            raise MemoryError
        return run(self, layer, resid, *args, **settings)

    monkeypatch.setattr(Face, "run_block", failing)
    assert_agree(game(MASKS), want)
    assert min(sizes) == 1 < max(sizes)
    assert game.rows_run == len(MASKS) - 4 * (operator == "remove")

    def never(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Face, "run_block", never)
    with pytest.raises(OutOfMemoryError):
        game(MASKS)


@FEW
@OPERATOR
def test_masks_one_by_one_twice_and_in_any_order(name, operator):
    game = make(name, operator)
    together = game(MASKS)
    assert torch.equal(together, game(MASKS))
    assert_agree(torch.cat([game(mask) for mask in MASKS]), together)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert_agree(game(MASKS[order]), together[order])
    assert torch.equal(game(torch.cat([MASKS, MASKS.flip(0)]))[16:], together.flip(0))


@FEW
def test_statements_sum_to_the_whole_answer(name):
    parts, whole = make(name), make(name, statements=None)
    assert whole.prompt_labels == (ANSWER,)
    assert parts.prompt_labels == (" drink to", " Mary,", " and a book")
    assert parts.target_lengths.tolist() == [2, 2, 3]
    assert whole.target_lengths.tolist() == [7]
    assert_agree(parts(MASKS).sum(1), whole(MASKS)[:, 0])
    assert_agree(parts.token_log_probs(MASKS).sum(1), whole(MASKS)[:, 0])


# --- what is run ------------------------------------------------------------------------------


def n_cells(prompts: Sequence[Tensor], n_tokens: int) -> int:
    """Different beginnings of the prompts but their last tokens; and each prompt's own end."""
    different = {tuple(prompt.tolist()) for prompt in prompts}
    shared = {prompt[: i + 1] for prompt in different for i in range(len(prompt) - 1)}
    return len(shared) + n_tokens * len(different)


@FEW
@pytest.mark.parametrize("operator", ["remove", "replace"])
def test_what_prompts_share_is_run_once(name, operator):
    game = shared(make(name, operator))
    prompts = [tokens_of(game.face.model, mask, operator) for mask in MASKS.tolist()]
    game(MASKS)
    n_different = len({tuple(prompt.tolist()) for prompt in prompts})
    assert n_different == (12 if operator == "remove" else 16)  # c and d are the same text
    assert game.rows_run == n_different
    assert game.tokens_run == n_cells(prompts, 7)
    naive = sum(len(prompt) + 6 for prompt in prompts)
    assert game.tokens_run < 0.8 * naive


def other(name: str, operator: Any = "remove") -> RemovalGame:
    """With another text in the place of b."""
    swapped = replace(B, text=" Tom had a good dog and a drink")
    return make(name, operator, pieces=[swapped if p is B else p for p in PIECES])


@FEW
@OPERATOR
def test_games_of_one_answer_run_together(name, operator):
    games = [
        shared(game) for game in (make(name, operator), other(name, operator), make(name, operator))
    ]
    masks = [MASKS, MASKS[[3, 7, 15]], MASKS[:0]]
    found = token_log_probs_of(list(zip(games, masks, strict=True)))
    alone = [shared(make(name, operator)), shared(other(name, operator))]
    for values, game, own in zip(found, alone, masks, strict=False):
        assert_agree(values, game.token_log_probs(own))
    assert found[2].shape == (0, found[0].shape[1])
    assert [game.evaluations for game in games] == [16, 3, 0]
    assert not torch.equal(found[0][[15]], found[1][[2]]), "the other text is read"
    spent, apart = (sum(game.tokens_run for game in some) for some in (games, alone))
    if operator == "mask":
        assert spent == apart
    else:  # of the other game's three prompts the beginnings are known, and one as a whole
        assert spent < apart


def test_games_that_differ_do_not_run_together():
    name = "llama-bridge"
    game = RemovalGame(shared_model(name), PIECES, " to Anna")
    with pytest.raises(ma.InputError, match=r"different answers, ' drink .*' and ' to Anna'"):
        token_log_probs_of([(make(name), MASKS[:1]), (game, MASKS[:1])])
    with pytest.raises(ma.InputError, match="different models"):
        token_log_probs_of([(make(name), MASKS[:1]), (make("gpt2-bridge"), MASKS[:1])])
    with pytest.raises(ma.InputError, match=r"0\.5, but a piece of text is there"):
        token_log_probs_of([(make(name), MASKS[:1]), (make(name), np.full((1, 4), 0.5))])


@pytest.mark.parametrize("hard", [True, False])
def test_masked_rows_are_the_different_masks(hard):
    """In the order in which np.unique has them, which is slower for thousands of players."""
    game = make(ONE[0], "mask")
    masks = torch.rand(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    masks = torch.cat([masks, masks[[4, 0]], MASKS[[3, 8, 3]]])
    masks[:6, 1:3] = masks[0, 1:3]  # the same value at several places
    masks = MASKS[[3, 8, 3, 12, 1, 8]].double() if hard else masks
    for given in (masks, masks.T.contiguous().T):
        rows, row_of = game._gated(given)
        assert rows.gates is not None
        want, places = np.unique(given.numpy(), axis=0, return_inverse=True)
        assert rows.gates.values.tolist() == want.tolist()
        assert row_of.tolist() == places.tolist()
        assert len(rows.tokens) == len(rows.heads) == len(want) < len(given)
        assert all(head.itemsize <= 4 for head in rows.heads)


def test_long_prompts_go_through_blocks_chunk_by_chunk():
    """One at a time: attention scores of several would grow with as many times the prompt."""
    model = tiny.tiny_bridge("llama")
    model.cfg.n_ctx = 8192
    long = [Piece("a", " Tom" * 2200), Piece("b", " Anna" * 2200)]
    game = RemovalGame(model, ["When", *long, " the"], ANSWER)
    assert len(game.layout.full) == 4402
    assert game.scorer.budget.call_tokens < 2 * scoring.CHUNK
    assert game.scorer._at_once([Span(0, 0, 4408, ROOT), Span(1, 0, 2208, ROOT)]) == 1
    short = RemovalGame(model, PIECES, ANSWER)
    assert short.scorer._at_once([Span(0, 0, 25, ROOT)]) > 20


@FEW
def test_masked_prompts_share_what_none_of_their_masks_has_touched(name):
    """A player's own positions are the same whether others see them or not."""
    game = shared(make(name, "mask"))
    game(MASKS)
    n_a, n_b, n_and, n_c, n_d, n_last = 5, 6, 1, 1, 1, 3
    prefixes = 1 + n_a + 2 * n_b + 4 * n_and + 4 * n_c + 8 * n_d + 16 * (n_last - 1)
    assert len(game.layout.full) == 1 + n_a + n_b + n_and + n_c + n_d + n_last
    assert game.tokens_run == prefixes + 7 * 16
    assert game.rows_run == 16


def test_statements_cost_nothing():
    one, three = make(ONE[0], statements=None), make(ONE[0])
    one(MASKS)
    three(MASKS)
    assert one.tokens_run == three.tokens_run > 0
    assert one.rows_run == three.rows_run == 12


def test_equal_masks_run_once():
    game = make(ONE[0])
    game(MASKS[[5, 5, 5]])
    assert game.rows_run == 1
    assert game.evaluations == 9


@FEW
def test_only_the_answers_rows_are_unembedded(name, monkeypatch):
    game = make(name)
    seen: list[int] = []
    logits = Face.logits

    def count(self: Face, resid: Tensor, columns: Tensor | None) -> Tensor:
        seen.append(resid.shape[:2].numel())
        return logits(self, resid, columns)

    monkeypatch.setattr(Face, "logits", count)
    game(MASKS)
    assert sum(seen) == 12 * 7


def test_progress_is_told_in_masks():
    game = make(ONE[0])
    heard: list[float] = []
    with game.watched(heard.append):
        game(MASKS)
    assert heard == sorted(heard)
    assert heard[-1] == 16


# --- tokenisation -------------------------------------------------------------------------------


def like_llama() -> Any:
    """A tokenizer that puts a blank before whatever it is given, and BOS before that."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["▁Paris", "▁is", "▁in", "▁", "\n", "Paris", "is", ".", *"abcdefghijklmnopqrstuvwxyzP"]
    known = [("<unk>", 0.0), ("<bos>", 0.0), *((w, -float(1 + i)) for i, w in enumerate(words))]
    inner = Tokenizer(models.Unigram(known, unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    inner.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        name_or_path="tiny",
        unk_token="<unk>",
        pad_token="<unk>",
        bos_token="<bos>",
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
    )


def test_blanks_that_a_tokenizer_adds_are_not_in_the_middle():
    model = tiny.tiny_bridge("llama", tokenizer=like_llama())
    pieces: list[str | Piece] = ["Paris", Piece("a", " is in"), Piece("b", "is\n"), "Paris"]
    game = RemovalGame(model, pieces, " is.", statements=[(0, 3), (3, 4)])
    words = model.tokenizer.convert_ids_to_tokens
    assert words(game.prompt_tokens([1, 1]).tolist()) == [
        "<bos>", "▁Paris", "▁is", "▁in", "is", "\n", "Paris",
    ]  # fmt: skip
    assert words(game.answer.tokens.tolist()) == ["▁is", "."]
    assert game.answer.members.tolist() == [[True, False], [False, True]]
    assert game.as_whole([[1, 1], [1, 0], [0, 1]]).tolist() == [True, True, True]
    with torch.no_grad():
        logs = model(torch.tensor([[*game.prompt_tokens([0, 1]), *game.answer.tokens]]))
    logs = logs[0].log_softmax(-1)
    assert_agree(game([0, 1])[0], logs[[4, 5], game.answer.tokens].double())


@pytest.mark.parametrize(
    ("asked", "adds", "n_bos"), [(None, True, 1), (None, False, 0), (True, False, 1),
                                 (True, True, 1), (False, True, 0)]
)  # fmt: skip
def test_bos_is_asked_for_and_no_player(asked, adds, n_bos):
    model = tiny.tiny_bridge("llama", tokenizer=tiny.tiny_tokenizer(bos=adds))
    if not adds:
        model.tokenizer.bos_token = "<eos>"
    game = RemovalGame(model, [A, B, " Anna"], ANSWER, prepend_bos=asked)
    bos = model.tokenizer.bos_token_id
    for mask in ([1, 1], [0, 1], [0, 0]):
        assert game.prompt_tokens(mask).tolist().count(bos) == n_bos
        assert (int(game.prompt_tokens(mask)[0]) == bos) == bool(n_bos)
    assert game.describe()["begins_with_bos"] == bool(n_bos)
    assert game.as_whole([[1, 1], [0, 0]]).all()


def test_bos_that_a_text_has_written_stays_one():
    model = tiny.tiny_bridge("llama", tokenizer=tiny.tiny_tokenizer(bos=True))
    bos = model.tokenizer.bos_token_id
    for asked, n_bos in ((None, 2), (False, 1)):
        game = RemovalGame(model, ["<bos>When", A, " Anna"], ANSWER, prepend_bos=asked)
        assert game.prompt_tokens([1]).tolist()[:3].count(bos) == n_bos
        assert len(game.layout.bos) == n_bos - 1


def test_where_the_whole_text_is_tokenised_otherwise():
    """What is two pieces here, "land" and "ing", is one token to a tokenizer that sees both."""
    tokenizer = tiny.tiny_tokenizer(extra_words=["landing"])
    model = tiny.tiny_bridge("llama", tokenizer=tokenizer)
    pieces: list[str | Piece] = ["When ", Piece("a", "land"), Piece("b", "ing"), " the"]
    game = RemovalGame(model, pieces, ANSWER)
    assert game.as_whole([[0, 0], [1, 0], [0, 1], [1, 1]]).tolist() == [True, True, True, False]
    assert not game.describe()["same_as_whole"]
    assert make(ONE[0]).describe()["same_as_whole"]


def test_replaced_texts_are_looked_at_as_a_whole_too():
    game = make(ONE[0], "replace")
    assert game.as_whole(MASKS).all()
    pieces: list[str | Piece] = ["When", replace(A, replacement=[20, 21]), " the"]
    by_ids = RemovalGame(game.face.model, pieces, ANSWER, operator="replace")
    assert by_ids.prompt_tokens([0]).tolist()[1:3] == [20, 21]


def test_an_answer_as_token_ids_is_the_same():
    model = shared_model(ONE[0])
    by_ids = RemovalGame(model, PIECES, ids(model, ANSWER), statements=STATEMENTS)
    assert by_ids.answer.text == ANSWER
    assert by_ids.answer.spans == make(ONE[0]).answer.spans
    assert torch.equal(by_ids(MASKS), make(ONE[0])(MASKS))


def test_tokens_belong_to_the_statement_of_their_first_letter():
    """A blank before a word is part of its token; blanks between statements belong to neither."""
    spans = ((1, 9), (10, 14), (16, 21), (1, 21))
    game = make(ONE[0], statements=spans)
    labels = np.array(game.answer.labels)
    assert labels.tolist() == [" drink", " to", " Mary", ",", " and", " a", " book"]
    assert [labels[row].tolist() for row in game.answer.members] == [
        [" drink", " to"], [" Mary"], [" and", " a"], [" drink", " to", " Mary", ",", " and", " a"],
    ]  # fmt: skip


# --- pieces of pieces ---------------------------------------------------------------------------


def cut_up(name: str, operator: Any) -> RemovalGame:
    """B's tokens as players: " John", " sat on", " the mat.": A, C and D are always there."""
    whole = make(name).layout
    parts = [(Piece("b1", " John"), 1), (Piece("b2", " sat on"), 2), (Piece("b3", " the mat."), 3)]
    return make(name, operator, pieces=whole.within({"b": parts}))


@FEW
@pytest.mark.parametrize("operator", ["remove", "mask"])
def test_a_piece_can_be_cut_up(name, operator):
    model = shared_model(name)
    game, uncut = cut_up(name, operator), make(name, operator)
    assert game.players.names == ("b1", "b2", "b3")
    assert game.players.coords["n_tokens"] == (1, 2, 3)
    assert torch.equal(game.prompt_tokens([1, 1, 1]), uncut.prompt_tokens([1, 1, 1, 1]))
    assert_agree(game([[1, 1, 1]]), uncut([[1, 1, 1, 1]]))
    masks = torch.tensor(list(itertools.product([0, 1], repeat=3)))
    before, after = ids(model, "When" + A.text), ids(model, " and Mary Mary Anna gave a")
    want = []
    for mask in masks.tolist():
        here = [1, 1, 1] if operator == "mask" else mask
        own = [
            ids(model, text)
            for text, there in zip((" John", " sat on", " the mat."), here, strict=True)
            if there
        ]
        prompt = torch.tensor([*before, *itertools.chain(*own), *after])
        hooks = []
        if operator == "mask":
            owner = torch.full_like(prompt, -1)
            owner[len(before) : len(before) + 6] = torch.tensor([0, 1, 1, 2, 2, 2])
            hooks = [closing(owner, mask, len(prompt) + 7)]
        want.append(plain(model, prompt, hooks))
    assert_agree(game.token_log_probs(masks), torch.stack(want))
    # with all of it cut out, as without the whole
    if operator == "remove":
        assert_agree(game([[0, 0, 0]]), uncut([[1, 0, 1, 1]]))


def test_what_is_cut_up_keeps_its_tokens():
    """The tokenizer makes one token of what is cut in two here, and of two texts side by side."""
    tokenizer = tiny.tiny_tokenizer(extra_words=["landing"])
    model = tiny.tiny_bridge("llama", tokenizer=tokenizer)
    pieces: list[str | Piece] = ["When ", Piece("a", "land"), Piece("b", "ing the"), " the"]
    whole = RemovalGame(model, pieces, ANSWER).layout
    cut = whole.within({"b": [(Piece("b1", "ing"), 1), (Piece("b2", " the"), 1)]})
    game = RemovalGame(model, cut, ANSWER)
    assert game.prompt_tokens([1, 1]).tolist() == whole.full.tolist()
    # "land" isn't a player any more, nor is it joined to the text before it
    assert game.prompt_tokens([0, 1]).tolist() == np.delete(whole.full, 3).tolist()
    assert not game.as_whole([[1, 1]])[0]
    assert game.as_whole([[0, 1]])[0]
    assert whole.text("b") == "ing the"
    assert whole.spans(tokenizer, "b") == ((0, 3), (3, 7))
    assert cut.digest() != whole.digest()


@pytest.mark.parametrize("sizes", [(1, 2), (3, 4), (0, 6), ()])
def test_cuts_must_fit(sizes):
    cut = [(Piece(f"b{i}", "x"), n) for i, n in enumerate(sizes)]
    with pytest.raises(ma.InputError, match=r"'b' has 6 tokens; it can't be cut into .*\["):
        make(ONE[0]).layout.within({"b": cut})
    with pytest.raises(ma.UnknownNameError, match="'e'"):
        make(ONE[0]).layout.within({"e": [(A, 5)]})


# --- masked for the question and the answer only ------------------------------------------------


@FEW
def test_players_may_see_each_other(name):
    """Attention to an absent player is masked for what comes after the last of them alone."""
    model = shared_model(name)
    masks = torch.rand(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    masks = torch.cat([masks, MASKS[[0, 5, 15]].double()])
    owner, prompt = owners(model), tokens_of(model, (1, 1, 1, 1), "mask")
    first = int((owner >= 0).nonzero().max()) + 1
    assert first == len(owner) - 3
    want = []
    for mask in masks.tolist():
        point, close = closing(owner, mask, len(prompt) + 7)

        def late(scores: Tensor, hook: Any, close: Any = close) -> Tensor:
            closed = close(scores, hook)
            return torch.cat([scores[:, :, :first], closed[:, :, first:]], dim=2)

        want.append(plain(model, prompt, [(point, late)]))
    for game in (
        make(name, "mask", between_players=False),
        shared(make(name, "mask", between_players=False), graph_tokens=3),
    ):
        assert_agree(game.token_log_probs(masks), torch.stack(want))
        values, slopes = game.value_and_gradient(masks[:4])
        assert_agree(values, by_statement(torch.stack(want[:4])))
        step = 1e-6
        for player in range(4):
            move = step * torch.eye(4, dtype=torch.float64)[player]
            along = (game(masks[:4] + move) - game(masks[:4] - move)) / (2 * step)
            torch.testing.assert_close(slopes[..., player], along, rtol=1e-5, atol=1e-6)
        assert float(slopes.abs().min()) > 1e-4
    both = make(name, "mask")
    assert_agree(game(MASKS[[15]]), both(MASKS[[15]]))
    # without a or b: others have seen them, with all of them absent the " and" between them
    assert float((game(MASKS[:12]) - both(MASKS[:12])).abs().max(1).values.min()) > 1e-3


def test_with_no_text_between_them_nothing_is_left_of_absent_players():
    pieces: list[str | Piece] = ["When", A, B, D, " Anna gave", " a"]
    both, late = (make(ONE[0], "mask", pieces=pieces, between_players=b) for b in (True, False))
    assert_agree(late([[0, 0, 0], [1, 1, 1]]), both([[0, 0, 0], [1, 1, 1]]))


@FEW
def test_then_only_the_prompts_end_is_run_for_each_mask(name):
    game = shared(make(name, "mask", between_players=False))
    game(MASKS)
    n_prompt = len(game.layout.full)
    assert game.tokens_run == n_prompt - 3 + 16 * (3 + 6)
    before = game.tokens_run
    game.gradient(MASKS)
    assert game.tokens_run - before == n_prompt - 3 + 16 * (3 + 6)
    assert game.describe()["between_players"] is False
    assert make(name, "mask").describe()["between_players"] is True


# --- gradients ------------------------------------------------------------------------------------


@FEW
def test_gradients_of_masked_attention(name):
    """Against differences of the values, at 0 and 1 from the side that there is."""
    game = make(name, "mask")
    masks = torch.tensor([[0.3, 1, 0.6, 0], [1, 1, 1, 1], [0, 0, 0.5, 0]], dtype=torch.float64)
    values, slopes = game.value_and_gradient(masks)
    assert_agree(values, game(masks))
    assert torch.equal(slopes, game.gradient(masks))
    step = 1e-8
    for player in range(4):
        up, down = masks.clone(), masks.clone()
        up[:, player] = (up[:, player] + step).clamp(max=1)
        down[:, player] = (down[:, player] - step).clamp(min=0)
        width = (up - down)[:, player, None]
        torch.testing.assert_close(
            slopes[..., player], (game(up) - game(down)) / width, rtol=1e-4, atol=1e-5
        )
    assert float(slopes.abs().min()) > 1e-4


@FEW
@pytest.mark.parametrize("chunk", [1024, 5])
def test_gradients_of_prompts_too_long_for_a_graph(name, chunk, monkeypatch):
    """Blocks are run again in the backward pass, not kept: the same to the last digit."""
    masks = torch.tensor([[0.3, 1, 0.6, 0], [1, 1, 1, 1]], dtype=torch.float64)
    kept, again = shared(make(name, "mask"), graph_tokens=999), make(name, "mask")
    kept.scorer.chunk = again.scorer.chunk = chunk
    shared(again, graph_tokens=10)
    calls: list[int] = []
    run = Face.run_block

    def count(self: Face, layer: int, resid: Tensor, *args: Any, **settings: Any) -> Any:
        calls.append(len(resid))
        return run(self, layer, resid, *args, **settings)

    monkeypatch.setattr(Face, "run_block", count)
    want = kept.value_and_gradient(masks)
    n_kept = len(calls)
    got = again.value_and_gradient(masks)
    assert_agree(got[0], want[0], 1e-12)
    assert_agree(got[1], want[1], 1e-12)
    # one row at a time, and each block again for each of the three statements
    assert len(calls) - n_kept == 2 * 4 * n_kept


def test_float16_has_no_slope_at_0():
    """A weight of 1e-30 is 0 there, and would have a gradient of 0."""
    model = tiny.tiny_bridge("llama", dtype=torch.float16)
    game = RemovalGame(model, PIECES, ANSWER, operator="mask")
    with pytest.raises(ma.NotSupportedError, match=r"float16.*in bfloat16 or float32"):
        game.gradient([[1, 0, 1, 1]])
    mask = [[1, 0.5, 1, 1]]
    exact = make("llama-bridge", "mask", statements=None).gradient(mask)
    assert float((game.gradient(mask) - exact).abs().max()) < 0.1 * float(exact.abs().max())
    assert bool(game([[1, 0, 1, 1]]).isfinite().all())


@pytest.mark.parametrize("operator", ["remove", "replace"])
def test_text_has_no_gradient(operator):
    with pytest.raises(ma.NotSupportedError, match=r"operator 'r.*has no gradient.*mask"):
        make(ONE[0], operator).gradient(MASKS)
    with pytest.raises(ma.NotSupportedError, match="has no gradient"):
        ma.attribute(make(ONE[0], operator), "gradient_clean")


def scores(game: RemovalGame, method: str) -> Tensor:
    return torch.tensor(ma.attribute(game, method).values.tolist(), dtype=torch.float64)


@FEW
def test_methods_run_on_it(name):
    game = make(name)
    table = game(MASKS)
    without, only = [7, 11, 13, 14], [8, 4, 2, 1]
    assert_agree(scores(game, "leave_one_out"), (table[15] - table[without]).T)
    assert_agree(scores(game, "include_one"), (table[only] - table[0]).T)
    for method in ("shapley", "exact_shapley"):
        found = scores(game, method)
        assert found.shape == (3, 4)
        assert_agree(found.sum(1), table[15] - table[0])
    # c and d are the same text: each the other's substitute
    assert_agree(found[:, 2], found[:, 3])
    masked = make(name, "mask")
    assert_agree(scores(masked, "gradient_clean"), masked.gradient([1, 1, 1, 1])[0])


# --- dtypes, hygiene, provenance ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@OPERATOR
def test_other_dtypes(dtype, operator):
    model = tiny.tiny_bridge("llama", dtype=dtype)
    game = RemovalGame(model, PIECES, ANSWER, operator=operator, statements=STATEMENTS)
    shared(game)
    values = game(MASKS)
    exact = make("llama-bridge", operator)(MASKS)
    assert values.dtype == torch.float64
    assert float((values - exact).abs().max()) < {torch.float32: 1e-4, torch.bfloat16: 0.5}[dtype]
    if operator == "mask":
        slopes = game.gradient(MASKS)
        exact = make("llama-bridge", operator).gradient(MASKS)
        loose = {torch.float32: 1e-3, torch.bfloat16: 0.5}[dtype]
        assert float((slopes - exact).abs().max()) < loose * float(exact.abs().max())


@FEW
@OPERATOR
def test_the_model_is_as_it_was(name, operator):
    family, _, cls = name.partition("-")
    model = {"hooked": tiny.tiny_hooked, "bridge": tiny.tiny_bridge}[cls](family)
    next(iter(model.parameters())).requires_grad_(False)
    model.blocks[1].train()
    model.add_hook("blocks.0.hook_resid_post", lambda value, hook: value * 1.1)
    before = state(model)
    game = RemovalGame(model, PIECES, ANSWER, operator=operator)
    values = game(MASKS)
    if operator == "mask":
        game.gradient(MASKS)
    assert_same(before, state(model))
    assert float((values - make(name, operator, statements=None)(MASKS)).abs().min()) > 1e-6


def test_provenance():
    facts = make(ONE[0], "mask").describe()
    assert facts["operator"] == "mask"
    assert facts["n_tokens"] == len(tokens_of(shared_model(ONE[0]), (1, 1, 1, 1), "mask"))
    assert facts["n_answer_tokens"] == 7
    assert facts["statements"] == [list(span) for span in STATEMENTS]
    again = make(ONE[0], "remove").describe()
    assert again["pieces"] == facts["pieces"]
    renamed = (*PIECES[:1], replace(A, name="other"), *PIECES[2:])
    other = make(ONE[0], pieces=renamed).describe()
    assert other["pieces"] != facts["pieces"]


def test_players_and_their_coordinates():
    pieces: list[str | Piece] = [
        "When",
        replace(A, coords={"passage": "p1"}),
        replace(B, kind="sentence"),
        " the",
    ]
    game = RemovalGame(shared_model(ONE[0]), pieces, ANSWER)
    assert game.players.names == ("a", "b")
    assert game.players.coords == {
        "passage": ("p1", None), "kind": ("passage", "sentence"), "index": (0, 1),
        "n_tokens": (5, 6),
    }  # fmt: skip


# --- errors ---------------------------------------------------------------------------------------

BAD_GAMES: dict[str, tuple[dict[str, Any], str]] = {
    "no players": ({"pieces": ["When", " the"]}, "No players"),
    "no pieces": ({"pieces": []}, "No players"),
    "a text for pieces": ({"pieces": "When"}, "expected a list of texts"),
    "something else for a piece": ({"pieces": ["When", 3]}, "A piece is 3"),
    "a name twice": ({"pieces": ["When", A, A]}, "'a' came twice"),
    "a piece without text": ({"pieces": ["When", A, Piece("e", "")]}, "'e' has no tokens"),
    "nothing always there": ({"pieces": [A, B]}, "nothing is left"),
    "ends in a player": ({"pieces": ["When", A], "operator": "mask"}, "always there.*'a'"),
    "no replacement": (
        {"pieces": ["When", A, Piece("e", " Tom")], "operator": "replace"}, "'e' has no repl"),
    "bad replacement": (
        {"pieces": ["When", Piece("e", " Tom", [1, -5])]}, "piece 'e' must be a text or token"),
    "unknown id": ({"pieces": ["When", Piece("e", " Tom", [999])]}, "999"),
    "unknown operator": ({"operator": "delete"}, "Unknown operator 'delete'"),
    "reserved coordinate": (
        {"pieces": ["When", replace(A, coords={"index": 1})]}, "coordinate 'index'"),
    "empty answer": ({"answer": ""}, "answer '' has no tokens"),
    "answer of what": ({"answer": [1.5]}, "answer must be a text or token ids"),
    "statement outside": ({"statements": [(0, 5), (9, 27)]}, "Statement 1.*26 characters"),
    "statement backwards": ({"statements": [(5, 5)]}, "Statement 0, characters 5 to 5"),
    "statement of what": ({"statements": [(1,)]}, r"Statement 0 is \(1,\)"),
    "statement without a token": ({"statements": [(2, 4)]}, "Statement 0 .*'ri'.* no token"),
    "no statements": ({"statements": []}, "statements is empty"),
    "too long": ({"pieces": ["When", Piece("e", " Tom" * 70), A]}, "71|76.*82.*64.*'e', has 70"),
    "masked for whom": ({"between_players": False}, "is of operator .*is 'remove'"),
    "no BOS": ({"prepend_bos": True}, "no BOS"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_GAMES)
def test_what_is_wrong_is_said(case):
    settings, message = BAD_GAMES[case]
    settings = {"pieces": PIECES, "answer": ANSWER, **settings}
    model = shared_model(ONE[0])
    if case == "no BOS":
        model = tiny.tiny_bridge("llama")
        model.tokenizer.bos_token = None
    with pytest.raises(ma.InputError, match=message):
        RemovalGame(model, settings.pop("pieces"), settings.pop("answer"), **settings)


def test_a_replacement_that_makes_a_prompt_too_long():
    pieces: list[str | Piece] = ["When", A, Piece("e", " Tom", " Tom" * 60), " the"]
    pieces[1] = replace(A, replacement=" Tom")
    game = RemovalGame(shared_model(ONE[0]), pieces, ANSWER, operator="replace")
    assert bool(game([[1, 1]]).isfinite().all())
    with pytest.raises(ma.InputError, match=r"without e has 67 tokens, 73 .* is 64"):
        game([[1, 1], [1, 0]])


def test_half_a_piece_of_text():
    for operator in ("remove", "replace"):
        with pytest.raises(ma.InputError, match=r"holds 0.25.*there \(1\) or not"):
            make(ONE[0], operator)([1, 1, 0.25, 1])


def test_values_that_are_not_finite_name_their_statement():
    model = tiny.tiny_bridge("llama")
    game = RemovalGame(model, PIECES, ANSWER, statements=STATEMENTS)
    model.blocks[1].mlp.out.weight.data.fill_(float("nan"))
    for call in (game, game.token_log_probs):
        with pytest.raises(ma.NotFiniteError, match="drink to"):
            call(MASKS)


def test_attention_that_ignores_masks_is_found_out(monkeypatch):
    monkeypatch.setattr(gates.Gates, "edits", lambda self, layers, *_: [[] for _ in range(layers)])
    with pytest.raises(ma.NotSupportedError, match="doesn't heed"):
        RemovalGame(tiny.tiny_bridge("llama"), PIECES, ANSWER, operator="mask")


@FEW
def test_both_model_classes(name):
    assert is_bridge(make(name).face.model) == name.endswith("bridge")
