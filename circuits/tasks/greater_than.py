"""Greater-than: "The war lasted from the year 1732 to the year 17" -> a year after 1732.

The task is that of Hanna, Liu & Variengien 2023, "How does GPT-2 compute greater-than?:
Interpreting mathematical abilities in a pre-trained language model" (arXiv:2305.00586), with nouns
and the choice of years adapted to the model's tokenizer:

- **Two digits a token** (GPT-2, Pythia: "17|32"). As in the paper: start years YY from 02 to 98,
  and the next token is the end year's two digits, set against each other as
  ``p(> YY) − p(<= YY)`` over 00 to 99. Years that the tokenizer cuts in another way ("1776" as one
  token) are left out.
- **One digit a token** (SmolLM2, Llama 1 and 2, Gemma: "1|7|3|9"). The next token is the end
  year's *decade* digit. It tells whether the year is greater only if the start year's last digit
  leaves no choice: after 1732 both 173_ and 174_ may be right, after 1739 the decade must be
  greater. So the start years are 17Y9 with Y from 1 to 8, and the target is
  ``p(digits > Y) − p(digits <= Y)``. (With any last digit, SmolLM2-135M puts 0.3 to 0.6 of its
  probability on Y itself, and rightly so; after a 9 it is 0.01 to 0.08.)

Tokenizers that cut years in other ways (Llama 3: "173|2") can't have this task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from circuits.tasks import words
from circuits.tasks.base import Task, Tokens
from circuits.tasks.sampling import balanced, generator
from mechattr.errors import InputError, NotSupportedError, UnknownNameError
from mechattr.transformer.prompts import Prompts, tokenizer_of

CENTURY = "17"
TEMPLATE = "The {noun} lasted from the year " + CENTURY + "{start} to the year " + CENTURY

# Events that can last decades; one token in most tokenizers.
NOUNS = words.listed("""
    war siege conflict campaign dynasty empire expedition reign rebellion rule strike trial
    voyage drought famine plague treaty alliance dispute project revolt struggle tour uprising
    battle pilgrimage journey revolution persecution crisis construction occupation partnership
    research investigation trade
""")

COUNTERFACTUALS = ("01", "random_year")


@dataclass(frozen=True)
class _Form:
    """How this tokenizer lets the task be put.

    name: which of the module's two forms.
    starts: what may follow the century in the start year.
    zero: what replaces a start in the counterfactual "01".
    ends: every next token: the number that it stands for, its text, and what a target is told.
    digits: how many digits of the start are one token.
    """

    name: str
    starts: tuple[str, ...]
    zero: str
    ends: tuple[tuple[int, str, str | int], ...]
    digits: int

    def split(self, start: str) -> tuple[list[int], list[int]]:
        """Indices of the ends that are greater than the start, and of those that aren't."""
        than = int(start[: self.digits])
        greater = [i for i, (number, _, _) in enumerate(self.ends) if number > than]
        return greater, [i for i in range(len(self.ends)) if i not in greater]

    def tokens(self, which: list[int]) -> Tokens:
        return tuple(self.ends[i][2] for i in which)

    def texts(self, which: list[int]) -> list[str]:
        return [self.ends[i][1] for i in which]


def greater_than(
    model: Any,
    *,
    size: int = 64,
    seed: int = 0,
    counterfactual: str = "01",
    prepend_bos: bool | None = None,
) -> Task:
    """Greater-than; the target is the total probability of greater years less that of the others.

    model: whose tokenizer decides the form of the task (see this module; ``task.form`` names it)
        and which nouns are used: those of one token, so that all prompts have one length.
    size: number of distinct prompts, in equal shares of all start years.
    seed: the clean prompts depend on it, but not on the kind of counterfactual.
    counterfactual: what replaces the start year; exactly one token differs.
        "01":          the century's first year, which rules out no end year, as in the paper; of
                       tokenizers with one digit a token only the decade digit becomes 0: 1709.
        "random_year": another of the start years.
    prepend_bos: as in ``Prompts.from_pairs``.

    ``dataset`` has one row a prompt: clean, counterfactual, answer and distractor (lists), noun,
    start, counterfactual_start, and the positions of the noun, of the token that differs, and of
    the end.

    SmolLM2-135M-Instruct (size 64, seed 0; one digit a token) is right on all 64, with an answer as
    its top token on all; the target is 0.943 ± 0.007 on the clean prompts, −0.900 ± 0.014 on "01".

    Raises NotSupportedError when the tokenizer cuts years in a way that leaves no such task,
    InputError when ``size`` distinct prompts don't exist.
    """
    if counterfactual not in COUNTERFACTUALS:
        raise UnknownNameError("counterfactual kind", counterfactual, COUNTERFACTUALS)
    tokenizer = tokenizer_of(model)
    form = _form(tokenizer)
    nouns = words.single(tokenizer, NOUNS)
    words.need(nouns, NOUNS, "nouns", 1, "the task")
    rows = _draw(form, list(nouns), size, seed)
    other_years = generator(seed, stream=1)
    for row in rows:
        other = form.zero
        if counterfactual == "random_year":
            different = [start for start in form.starts if start != row["start"]]
            other = different[other_years.integers(len(different))]
        row["counterfactual_start"] = other
        row["counterfactual"] = TEMPLATE.format(noun=row["noun"], start=other)
    prompts = Prompts.from_pairs(
        model,
        [row["clean"] for row in rows],
        [row["counterfactual"] for row in rows],
        prepend_bos=prepend_bos,
    )
    _locate(rows, prompts, nouns)
    splits = [form.split(row["start"]) for row in rows]
    return Task(
        name="greater_than",
        prompts=prompts,
        measure="prob_diff",
        answers=tuple(form.tokens(greater) for greater, _ in splits),
        distractors=tuple(form.tokens(rest) for _, rest in splits),
        columns={name: [row[name] for row in rows] for name in _COLUMNS},
        seed=seed,
        counterfactual_kind=counterfactual,
        form=form.name,
    )


_COLUMNS = (
    *("clean", "counterfactual", "answer", "distractor", "noun", "start", "counterfactual_start"),
    *("position_noun", "position_start", "position_end"),
)


def _form(tokenizer: Any) -> _Form:
    form = _two_digits(tokenizer) or _one_digit(tokenizer)
    if form is None:
        ids = words.continuation(tokenizer, "the year", f" {CENTURY}32") or []
        cut = "|".join(tokenizer.decode([i]) for i in ids)
        raise NotSupportedError(
            f"greater_than needs a tokenizer that cuts the year {CENTURY}32 into {CENTURY}|32 or "
            f"1|7|3|2; this one makes {cut!r} of it, so that no single next token says which "
            f"year is greater."
        )
    return form


def _two_digits(tokenizer: Any) -> _Form | None:
    texts = [f"{year:02d}" for year in range(100)]
    in_place = [words.one_token(tokenizer, f"the year {CENTURY}", text) for text in texts]
    # "76" is still a possible next token where "1776" as a whole is another one.
    ids = [
        words.alone(tokenizer, text) if token is None else token
        for text, token in zip(texts, in_place, strict=True)
    ]
    starts = tuple(texts[year] for year in range(2, 99) if in_place[year] is not None)
    if None in ids or len(starts) < 2 or in_place[1] is None:
        return None
    ends = tuple(
        (year, text, words.as_answer(tokenizer, text, token))
        for year, (text, token) in enumerate(zip(texts, ids, strict=True))
        if token is not None
    )
    return _Form("end years of two digits, one token", starts, "01", ends, digits=2)


def _one_digit(tokenizer: Any) -> _Form | None:
    before = f"the year {CENTURY}"
    ids = [words.one_token(tokenizer, before, str(digit)) for digit in range(10)]
    whole = [words.continuation(tokenizer, before, f"{decade}9") for decade in range(9)]
    if None in ids or whole != [[ids[decade], ids[9]] for decade in range(9)]:
        return None
    ends = tuple(
        (digit, str(digit), words.as_answer(tokenizer, str(digit), token))
        for digit, token in enumerate(ids)
        if token is not None
    )
    starts = tuple(f"{decade}9" for decade in range(1, 9))
    return _Form("decade digit after start years that end in 9", starts, "09", ends, digits=1)


def _draw(form: _Form, nouns: list[str], size: int, seed: int) -> list[dict[str, Any]]:
    """Distinct sentences, balanced over start years."""
    rows = []
    spaces = [len(nouns)] * len(form.starts)
    for year, noun in balanced(generator(seed), size, spaces, "sentences"):
        start = form.starts[year]
        greater, rest = form.split(start)
        rows.append(
            {
                "clean": TEMPLATE.format(noun=nouns[noun], start=start),
                "noun": nouns[noun],
                "start": start,
                "answer": form.texts(greater),
                "distractor": form.texts(rest),
            }
        )
    return rows


def _locate(rows: list[dict[str, Any]], prompts: Prompts, nouns: dict[str, int]) -> None:
    """Write positions into the rows, and make sure that the two prompts differ in one token."""
    pairs = zip(prompts.tokens, prompts.counterfactual or (), strict=True)
    for i, (row, (clean, other)) in enumerate(zip(rows, pairs, strict=True)):
        differ = (clean != other).nonzero()[:, 0].tolist()
        noun = words.positions(clean, nouns[row["noun"]])
        if len(differ) != 1 or len(noun) != 1:
            raise InputError(
                f"Prompt {i} and its counterfactual should differ in one token and have the noun "
                f"{row['noun']!r} once; they differ in {len(differ)}, the noun is there "
                f"{len(noun)} times: {'|'.join(prompts.labels[i])}"
            )
        row |= {"position_noun": noun[0], "position_start": differ[0]}
        row["position_end"] = prompts.target_positions[i]
