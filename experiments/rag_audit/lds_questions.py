"""Questions for the held-out LDS: sentences of five or six passages about invented things (12 to 14
as they stand, up to 20), and an answer of two or three statements from different passages.

Names and numbers are drawn, so that memory can't answer. Among the sentences: ones that need the
one before them ("It was moved to ..."), distractors with the answer's relation or its names, a
second source of one statement, and fillers, of which some are left out. Answers are worded unlike
their sources here and there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PASSAGES = (5, 6)
SENTENCES = (12, 14)

PEOPLE = (
    "Pell Dorran", "Mira Stove", "Joren Pike", "Lise Orban", "Ana Quill", "Tobin Hask",
    "Edda Marrow", "Carl Venn", "Rosa Tilling", "Ivo Brandt", "Nell Corrin", "Hugo Sarn",
    "Greta Lund", "Piet Oster", "Vera Tamm", "Owen Fisk", "Clara Nyland", "Bruno Keld",
)  # fmt: skip
PLACES = (
    "Telmar", "Brask", "Merrow", "Grell", "Varn", "Oddle", "Sall", "Lorn", "Halden", "Kester",
    "Dunmire", "Orvane", "Pellin", "Strand", "Wick", "Tarnow", "Ister", "Moll",
)  # fmt: skip
THINGS = (
    "Ysolde", "Candle", "Thimble", "Dargo", "Kestrin", "Amber", "Falcon", "Juno", "Plover",
    "Sorrel", "Tansy", "Linnet", "Corvid", "Saffron", "Marlin", "Osprey",
)  # fmt: skip

EXTRA = ("~A census of {y4} counted {n2} houses.", "~{p4} kept the records.")
"""Two more fillers for any topic, at the end of its last passage."""


@dataclass(frozen=True)
class Topic:
    """Texts with slots: {p1}.. people, {c1}.. places, {t1}.. things, {y1}.. years, {n1}.. numbers.

    passages: sentences of each. A sentence that begins with "~" is a filler, a passage of fillers
        only may be left out as a whole.
    """

    question: str
    statements: tuple[str, ...]
    passages: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Question:
    name: str
    question: str
    statements: tuple[str, ...]
    passages: tuple[tuple[str, ...], ...]

    @property
    def n_sentences(self) -> int:
        return sum(map(len, self.passages))

    @property
    def answer(self) -> str:
        return " ".join(self.statements)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Characters of each statement in the answer; a blank goes with what comes after it."""
        ends = np.cumsum([len(text) + (i > 0) for i, text in enumerate(self.statements)]).tolist()
        return tuple(zip([0, *ends[:-1]], ends, strict=True))


TOPICS = {
    "lantern": Topic(
        "Who made the {t1} lantern, and where is it now?",
        ("{p1} made the {t1} lantern.", "Today it is in the cellar of the {c1} museum."),
        (
            ("The {t1} lantern was made in {y1} by {p1}.",
             "It was moved to the {c1} museum after the flood.",
             "~{p1} also carved the doors of the church."),
            ("The {c1} museum keeps its old lamps in the cellar.",
             "~Visitors may enter on Sundays only.",
             "~The museum was built from red stone."),
            ("The {t1} clock stands in the town hall of {c2}.",
             "The clock was made by {p2}.",
             "~The hall was painted blue in {y2}."),
            ("The {t2} lantern was made in {y3} by {p3}.",
             "It hangs in the chapel of {c3}.",
             "~The chapel is closed in winter."),
            ("An old catalogue names {p1} as the maker of the {t1} lantern.",
             "~The catalogue was printed in {c3}.",
             "~Only {n1} copies are left."),
            ("~{c2} lies on the river Isk.",
             "~It was founded by weavers.",
             "~There is a market every Friday."),
        ),
    ),
    "race": Topic(
        "Who won the {c1} race in {y1}, and who had won it the year before?",
        ("{p1} won the {c1} race in {y1}, riding {t1}.",
         "The winner of the year before was {p2}.",
         "{t1} came from the stables of {c2}."),
        (
            ("In {y1} {p1} came first in the {c1} race.",
             "The horse was called {t1}.",
             "~The prize was a silver cup."),
            ("{t1} was bred in {c2}.",
             "~The stables there are run by {p4}.",
             "~They were built in {y2}."),
            ("The race of the year before was won by {p2}.",
             "{p2} rode {t2}.",
             "~It rained all day."),
            ("The {c3} race is held on the same day.",
             "{p3} won it in {y1}.",
             "The horse of {p3} was called {t3}."),
            ("~The {c1} course is {n1} miles long.",
             "~It passes the mill of {c4}.",
             "~Tickets are sold at the gate."),
            ("{p1} retired soon after winning with {t1}.",
             "~{p2} now trains young riders.",
             "{t2} fell in the {c1} race of {y1}."),
        ),
    ),
    "pump": Topic(
        "What drives the {t1} pump, and how deep does it reach?",
        ("The {t1} pump runs on compressed air from two tanks.",
         "It can lift water from a depth of {n1} metres."),
        (
            ("The {t1} pump was designed by {p1}.",
             "It is driven by compressed air.",
             "~It weighs two hundred kilos."),
            ("Two steel tanks supply the air of the {t1} pump.",
             "Each tank must be filled every six hours.",
             "~They are made in {c1}."),
            ("The older {t2} pump runs on steam.",
             "Steam was given up because of fires.",
             "The {t2} pump had one tank of water."),
            ("In tests the {t1} pump lifted water from {n1} metres.",
             "The {t2} pump reached only {n2} metres.",
             "~The tests were held in the mine of {c2}."),
            ("~{p1} grew up in {c3}.",
             "~{p2} was a friend of the family.",
             "~They met at school."),
            ("A leaflet praises the {t1} pump as quiet.",
             "It says that air is cheaper than steam.",
             "~The pump was sold in nine countries."),
        ),
    ),
    "bridge": Topic(
        "Why did the {c1} bridge close, and who repaired it?",
        ("The {c1} bridge closed because ice had cracked its third pier.",
         "{p1} of {c2} repaired it within {n1} months."),
        (
            ("In the winter of {y1} thick ice drifted down the river.",
             "The ice broke the third pier of the {c1} bridge.",
             "The bridge was closed the next morning."),
            ("The repairs of the {c1} bridge were led by {p1}.",
             "They lasted {n1} months.",
             "~A ferry carried people across in the meantime."),
            ("{p1} was an engineer from {c2}.",
             "~The family had owned a quarry.",
             "~A street is named after {p1}."),
            ("The {c3} bridge was closed because of a fire.",
             "Its wooden deck had burnt.",
             "{p2} repaired it."),
            ("~The {c1} bridge was opened in {y2}.",
             "~Today it carries trams.",
             "~The trams are green."),
            ("Engineers found that the first pier was sound.",
             "Only the third pier had cracked.",
             "~A toll was charged until {y3}."),
        ),
    ),
    "plant": Topic(
        "Where does the {t1} lily grow, and what is it used for?",
        ("The {t1} lily grows on the cliffs of {c1}.",
         "Its root is boiled to treat fever.",
         "It was first described by {p1}."),
        (
            ("The {t1} lily is found only in {c1}.",
             "It grows on cliffs above the sea.",
             "~Goats can't reach it there."),
            ("People in {c1} boil the root of the {t1} lily.",
             "The tea is given against fever.",
             "~It tastes of pepper."),
            ("The {t2} lily grows in the marshes of {c2}.",
             "Its leaves are used for dye.",
             "The dye is yellow."),
            ("{p1} described the {t1} lily in {y1}.",
             "{p2} described the {t2} lily.",
             "~Both had studied in {c3}."),
            ("~The botanic garden of {c3} has {n1} kinds of lilies.",
             "~It opens in April.",
             "~A guide costs three marks."),
            ("A letter of {p1} mentions a white flower on the cliffs of {c1}.",
             "~The letter was sold in {y2}.",
             "~{p3} owns it now."),
        ),
    ),
    "ship": Topic(
        "What did the {t1} carry when it sank, and who survived?",
        ("The {t1} was carrying salt and copper when it sank.",
         "Only the cook, {p1}, survived."),
        (
            ("The {t1} left {c1} with a cargo of salt.",
             "In {c2} copper was loaded as well.",
             "~The crew was {n1} strong."),
            ("The {t1} sank off {c3} in {y1}.",
             "All were lost but one man.",
             "He was found on the beach of {c3}."),
            ("{p1} was the cook of the {t1}.",
             "{p1} lived to tell of the wreck.",
             "~A book was made of the story."),
            ("The {t2} sank in the same storm.",
             "It was carrying wool and tin.",
             "The captain of the {t2}, {p2}, survived."),
            ("~{c3} has had a lighthouse since {y2}.",
             "~Its keeper is {p3}.",
             "~The lamp burns oil."),
            ("Divers found copper bars in the wreck of the {t1}.",
             "~They are shown in {c1}.",
             "~The ship's bell is missing."),
        ),
    ),
    "firm": Topic(
        "Who founded the firm {t1}, what does it make, and who leads it today?",
        ("{t1} was founded by {p1} in {c1}.",
         "It makes scales for bakers.",
         "Its head today is {p2}."),
        (
            ("{p1} opened a workshop in {c1} in {y1}.",
             "The workshop was later called {t1}.",
             "~It had {n1} workers."),
            ("{t1} builds scales.",
             "Nearly all of them are bought by bakers.",
             "~They are painted white."),
            ("Since {y2} {t1} has been led by {p2}.",
             "{p2} is a grandchild of {p1}.",
             "~Before that {p2} was a judge."),
            ("The firm {t2} was founded by {p3} in {c2}.",
             "It makes clocks for stations.",
             "Its head is {p4}."),
            ("~{c1} has two railway stations.",
             "~The newer one was opened in {y3}.",
             "~Trains to {c2} leave every hour."),
            ("The bakers of {c2} prefer scales of {t1}.",
             "~They pay in spring.",
             "~{t2} tried to sell scales once and gave up."),
        ),
    ),
    "song": Topic(
        "Who wrote the song of {c1}, and when is it sung?",
        ("The song of {c1} was written by {p1}, a baker's daughter.",
         "It is sung when the first snow falls."),
        (
            ("The words of the song of {c1} are by {p1}.",
             "The tune is an old dance.",
             "~It has {n1} verses."),
            ("{p1} was the daughter of a baker.",
             "~The bakery stands by the bridge.",
             "~{p1} learnt to read late."),
            ("At the first snow people of {c1} meet in the square.",
             "They sing their song there.",
             "~Children carry lamps."),
            ("The song of {c2} was written by {p2}, a miller.",
             "It is sung at harvest.",
             "~{p2} died in {y1}."),
            ("~The square of {c1} was paved in {y2}.",
             "~A fountain stands in it.",
             "~{p3} gave the money."),
            ("A record of {y3} has both songs.",
             "{p1} is named on it as a writer.",
             "~It was made in {c3}."),
        ),
    ),
}  # fmt: skip


def questions(n: int = 10, sentences: tuple[int, int] = SENTENCES) -> list[Question]:
    """The topics in turn, each time with other names, order and length. Always the same.

    sentences: the fewest and the most of a question, at least 12 and at most 20.
    """
    names = list(TOPICS)
    return [_filled(names[i % len(names)], i, sentences) for i in range(n)]


def _filled(name: str, number: int, sentences: tuple[int, int]) -> Question:
    topic, rng = TOPICS[name], np.random.default_rng(number)
    slots = _slots(rng)
    passages = _shortened(topic.passages, int(rng.integers(sentences[0], sentences[1] + 1)), rng)
    order = rng.permutation(len(passages))
    return Question(
        f"{number:02d} {name}",
        topic.question.format(**slots),
        tuple(text.format(**slots) for text in topic.statements),
        tuple(tuple(s.lstrip("~").format(**slots) for s in passages[i]) for i in order),
    )


def _slots(rng: np.random.Generator) -> dict[str, object]:
    slots: dict[str, object] = {}
    for letter, texts in (("p", PEOPLE), ("c", PLACES), ("t", THINGS)):
        chosen = rng.choice(len(texts), 4, replace=False)
        slots |= {f"{letter}{k + 1}": texts[i] for k, i in enumerate(chosen)}
    slots |= {f"y{k + 1}": int(y) for k, y in enumerate(rng.integers(1750, 1990, 4))}
    # two numbers of two figures, unlike each other
    return slots | {"n1": int(rng.integers(51, 99)), "n2": int(rng.integers(11, 49))}


def _shortened(
    passages: Sequence[tuple[str, ...]], most: int, rng: np.random.Generator
) -> list[tuple[str, ...]]:
    """Fillers left out, one by one, until ``most`` sentences are left; at least five passages."""
    kept = [list(sentences) for sentences in passages]
    kept[-1] += EXTRA
    fillers = [(p, s) for p, own in enumerate(kept) for s in own if s.startswith("~")]
    for k in rng.permutation(len(fillers)):
        if sum(map(len, kept)) <= most:
            break
        p, sentence = fillers[k]
        if len(kept[p]) == 1 and sum(map(bool, kept)) <= PASSAGES[0]:
            continue
        kept[p].remove(sentence)
    return [tuple(sentences) for sentences in kept if sentences]
