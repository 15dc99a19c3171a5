"""People and towns."""

from __future__ import annotations

from experiments.rag_audit.kinds.shared import Kind, Relation

PERSON = Kind(
    "person",
    ("{n}",),
    "",
    ("{e}", "{e}: a life", "The papers of {e}", "Who was {e}?"),
    (
        Relation(
            "birthplace",
            "place",
            (
                "{e} was born in {v}, the youngest of five children.",
                "{e} came into the world above a bakery in {v}.",
                "A house in {v} bears a plaque, since it is there that {e} was born.",
            ),
            "Where was {e} born?",
            ("{e} was born in {v}.",),
            ("{e} was a native of {v}.", "{e} hailed from {v}."),
            "The house where {e} was born was pulled down long ago.",
        ),
        Relation(
            "birth year",
            "year",
            (
                "{e} was born in {v}, in the middle of a harsh winter.",
                "The parish register gives {v} for the birth of {e}.",
                "In {v} the family celebrated the birth of {e}.",
            ),
            "When was {e} born?",
            ("{e} was born in {v}.",),
            ("{e} came into the world in {v}.",),
            "The year in which {e} was born was long disputed among scholars.",
        ),
        Relation(
            "teacher",
            "person",
            (
                "As a student {e} was taught by {v}, and the two wrote to each other for decades.",
                "{e} studied under {v} for six years.",
                "{v} took {e} in as a pupil and paid for books and board.",
            ),
            "Who taught {e}?",
            ("{e} was taught by {v}.",),
            ("The mentor of {e} was {v}.", "{v} gave {e} an education."),
            "The letters of {e} speak warmly of the person who taught the child Latin.",
            "the person who taught {e}",
            "person",
        ),
        Relation(
            "trade",
            "trade",
            (
                "Before the war {e} worked as {v} and lived modestly.",
                "{e} earned a living as {v}, like so many in the quarter.",
                "In the census {e} is listed as {v}.",
            ),
            "What was the profession of {e}?",
            ("{e} worked as {v}.", "{e} was {v}."),
            ("{e} was {v} by profession.",),
            "The profession of {e} is carved on the gravestone, but weather has worn it away.",
        ),
    ),
    (
        "{e} never married and kept two grey cats.",
        "{e} is remembered for a fine singing voice.",
        "A portrait of {e} hangs in a small chapel.",
        "{e} disliked travelling and wrote mostly at night.",
        "Some letters by {e} were sold at an auction.",
        "A street was later named after {e}.",
        "{e} kept bees behind the house and gave the honey away.",
        "Neighbours described {e} as quiet but stubborn.",
        "{e} suffered from poor eyesight in later years.",
        "A biography of {e} came out in two volumes.",
    ),
)

TOWN = Kind(
    "town",
    ("{n}",),
    "the town",
    ("{e}", "{e}, a guide", "A walk through {e}", "{e} and its people"),
    (
        Relation(
            "river",
            "place",
            (
                "{e} lies on the river {v}, which floods every spring.",
                "The river {v} winds through {e} under seven footbridges.",
                "Barges on the {v} used to moor below the walls of {e}.",
            ),
            "On which river does {e} lie?",
            ("{e} lies on the river {v}.",),
            ("{e} stands beside the {v}.", "The waters of the {v} run past {e}."),
            "The river on which {e} lies is too shallow for large boats.",
        ),
        Relation(
            "founder",
            "person",
            (
                "{e} was founded by {v}, who is buried under the church.",
                "It was {v} who laid out the first streets of {e}.",
                "The charter names {v} as the founder of {e}.",
            ),
            "Who founded {e}?",
            ("{e} was founded by {v}.",),
            ("{v} established {e}.", "The settlement goes back to {v}."),
            "A statue of the founder of {e} was melted down for its metal.",
            "the founder of {e}",
            "person",
        ),
        Relation(
            "product",
            "goods",
            (
                "{e} is known for its {v}, sold at a fair every autumn.",
                "Traders came to {e} from far away to buy {v}.",
                "The wealth of {e} rested on {v}.",
            ),
            "What is {e} known for?",
            ("{e} is known for {v}.",),
            ("{e} is famous for {v}.", "{e} is renowned for {v}."),
            "What {e} is known for can be seen on its coat of arms, over the gate.",
        ),
        Relation(
            "towers",
            "count",
            (
                "{e} still has {v} towers along its old wall.",
                "Of the defences of {e}, {v} towers are standing.",
                "Visitors to {e} can count {v} towers from the hill.",
            ),
            "How many towers does {e} have?",
            ("{e} has {v} towers.",),
            ("There are {v} towers in {e}.",),
            "The number of towers that {e} has is the subject of a nursery rhyme.",
        ),
    ),
    (
        "{e} has a covered market and a small theatre.",
        "Storks nest on the roofs of {e} in summer.",
        "Trains stop at {e} twice a day.",
        "Many of the houses in {e} are painted yellow.",
        "The main square of {e} is paved with river stones.",
        "Young people often leave {e} to find work elsewhere.",
        "The bakeries of {e} open before sunrise.",
        "A small airfield near {e} is used by gliders.",
        "{e} was rebuilt after a great fire.",
        "Cyclists like the quiet lanes around {e}.",
    ),
)
