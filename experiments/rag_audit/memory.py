"""Questions that a small model answers without any passage.

Of some forty facts of common knowledge these are left for which SmolLM2-135M-Instruct gives the
answer no more than 0.45 nats more with a passage that says it than with no passage at all (most of
them less: a passage is one more thing to talk about). The whole answer has -0.3 to -6 nats without
passages; most invented ones have -10 to -60.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """value: what must not be in other passages. opening, closing: of a passage about it."""

    question: str
    answer: str
    value: str
    title: str
    opening: str
    closing: str

    @property
    def family(self) -> str:
        """What is asked: facts of a family are near each other."""
        return " ".join(self.question.split()[:4])

    @property
    def stating(self) -> str:
        """A passage that says it."""
        return f"{self.opening} {self.answer} {self.closing}"

    @property
    def near(self) -> str:
        """A passage about the same that doesn't."""
        return f"{self.opening} {self.closing}"


def _capital(country: str, city: str, opening: str, closing: str) -> Known:
    question, answer = f"What is the capital of {country}?", f"The capital of {country} is {city}."
    return Known(question, answer, city, country, opening, closing)


def _symbol(what: str, symbol: str, opening: str, closing: str) -> Known:
    question = f"What is the chemical symbol for {what}?"
    answer = f"The chemical symbol for {what} is {symbol}."
    return Known(question, answer, symbol, what.capitalize(), opening, closing)


def _span(unit: str, whole: str, number: str, opening: str, closing: str) -> Known:
    article = "an" if whole == "hour" else "a"
    question = f"How many {unit} are in {article} {whole}?"
    answer = f"There are {number} {unit} in {article} {whole}."
    return Known(question, answer, number, f"The {whole}", opening, closing)


KNOWN: tuple[Known, ...] = (
    _capital(
        "France",
        "Paris",
        "France is visited by millions of tourists every year.",
        "Its bread, cheese and wine are known all over the world.",
    ),
    _symbol(
        "water",
        "H2O",
        "Water covers most of the planet.",
        "It freezes from the top, so that fish survive the winter.",
    ),
    _capital(
        "Italy",
        "Rome",
        "Italy has a long coast and many volcanoes.",
        "Its cooking is loved everywhere.",
    ),
    _span(
        "hours",
        "day",
        "24",
        "The day has been divided in many ways.",
        "In some cultures it began at sunset.",
    ),
    _capital(
        "Japan",
        "Tokyo",
        "Japan consists of thousands of islands.",
        "Earthquakes are frequent there, and houses are built accordingly.",
    ),
    _symbol(
        "gold",
        "Au",
        "Gold is a soft yellow metal.",
        "It does not rust and has been used in jewellery for ages.",
    ),
    _capital(
        "Germany",
        "Berlin",
        "Germany has large forests and a dense net of railways.",
        "It borders on nine other countries.",
    ),
    _capital(
        "Spain",
        "Madrid",
        "Spain is known for its olives and its long summers.",
        "Many people there eat dinner late at night.",
    ),
    _span(
        "minutes",
        "hour",
        "60",
        "The hour was once measured with water and sand.",
        "Its length used to change with the seasons.",
    ),
    _capital(
        "Egypt",
        "Cairo",
        "Egypt is mostly desert.",
        "Nearly all of its people live close to the Nile.",
    ),
    Known(
        "How many sides does a triangle have?",
        "A triangle has three sides.",
        "three",
        "Triangles",
        "Triangles are the simplest polygons.",
        "Builders like them, since they cannot be bent out of shape.",
    ),
    _capital(
        "Russia",
        "Moscow",
        "Russia is the largest country on Earth.",
        "It spans eleven time zones and two continents.",
    ),
    _symbol(
        "silver",
        "Ag",
        "Silver has been made into coins and spoons for ages.",
        "It turns black when it is left in the air.",
    ),
    _capital(
        "China",
        "Beijing",
        "China has more than a billion people.",
        "Tea has been grown there for a very long time.",
    ),
    _capital(
        "Greece",
        "Athens",
        "Greece has hundreds of islands.",
        "Ferries connect most of them all year round.",
    ),
    _span(
        "seconds",
        "minute",
        "60",
        "The minute became important only with good clocks.",
        "Railways made people count it.",
    ),
    _capital(
        "Canada",
        "Ottawa",
        "Canada has long winters and countless lakes.",
        "Ice hockey is very popular there.",
    ),
    Known(
        "At what temperature does water boil in degrees Celsius?",
        "Water boils at 100 degrees Celsius.",
        "100",
        "Boiling",
        "Heat turns water into steam.",
        "Cooks use it for rice, eggs and vegetables.",
    ),
    _capital(
        "England",
        "London",
        "England is famous for its gardens and its rain.",
        "Its railways are among the oldest anywhere.",
    ),
    _symbol(
        "iron",
        "Fe",
        "Iron is found in rocks almost everywhere.",
        "It rusts when it gets wet.",
    ),
    _capital(
        "Portugal",
        "Lisbon",
        "Portugal lies on the Atlantic coast.",
        "Cork and tiles are among its best-known goods.",
    ),
    Known(
        "Who wrote Romeo and Juliet?",
        "Romeo and Juliet was written by William Shakespeare.",
        "Shakespeare",
        "Romeo and Juliet",
        "Romeo and Juliet is a tragedy of two young lovers.",
        "Their families have been enemies for ages.",
    ),
    _capital(
        "Poland",
        "Warsaw",
        "Poland has a coast in the north and mountains in the south.",
        "Mushrooms are picked there every autumn.",
    ),
    _symbol(
        "sodium",
        "Na",
        "Sodium is a metal that one can cut with a knife.",
        "It burns with a yellow flame.",
    ),
    _capital(
        "Austria",
        "Vienna",
        "Austria is a country of mountains.",
        "Its music and its cakes draw many visitors.",
    ),
    Known(
        "At what temperature does water freeze in degrees Celsius?",
        "Water freezes at 0 degrees Celsius.",
        "0",
        "Ice",
        "Cold turns water into ice.",
        "It floats, because it is lighter than water.",
    ),
    _capital(
        "Norway",
        "Oslo",
        "Norway has deep fjords and many tunnels.",
        "In the far north the sun does not set in summer.",
    ),
    _capital(
        "Ireland",
        "Dublin",
        "Ireland is green because it rains so often.",
        "Many of its songs are about the sea.",
    ),
    _capital(
        "Cuba",
        "Havana",
        "Cuba is an island with old cars and lively music.",
        "Sugar is grown in many places there.",
    ),
)
