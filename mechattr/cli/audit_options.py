"""The options of ``mechattr audit``, some of them ``inside``'s too; more are in ``options.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mechattr.cli.options import METHOD, OUT

RULES = "When is a passage used"

Records = Annotated[
    Path,
    typer.Argument(
        help="JSONL, one question a line: question, passages, answer (left out: generated); names "
        "of other tools, such as user_input, retrieved_contexts, response, are read as they are.",
        show_default=False,
    ),
]
Operators = Annotated[
    str,
    typer.Option(
        "--operator",
        help="What an absent passage is: remove, mask (attention to it) or replace (by an "
        "off-topic one). Several with commas: the first gives the verdicts, disagreement is "
        "flagged.",
        rich_help_panel=METHOD,
    ),
]
Unit = Annotated[str, typer.Option(help="Who plays: passage or sentence.", rich_help_panel=METHOD)]
Template = Annotated[
    Path | None,
    typer.Option(
        help="A file with the user's message, {passages} and {question} in it.",
        rich_help_panel=METHOD,
        show_default=False,
    ),
]
Surrogate = Annotated[str, typer.Option(help="surrogate or contextcite.", rich_help_panel=METHOD)]
Samples = Annotated[
    int | None,
    typer.Option(
        help="The surrogate's masks. Default: two a passage or somewhat more; 64 for contextcite.",
        rich_help_panel=METHOD,
        show_default=False,
    ),
]
Shapley = Annotated[
    int,
    typer.Option(help="Evaluations for Shapley values; 0: none.", rich_help_panel=METHOD),
]
Earlier = Annotated[
    bool,
    typer.Option(
        "--earlier",
        help="Earlier statements of an answer are players too.",
        rich_help_panel=METHOD,
    ),
]
Tokens = Annotated[
    str | None,
    typer.Option(
        help="Highlight tokens inside passages by this method, such as integrated_gradients or "
        "leave_one_out.",
        rich_help_panel=METHOD,
        show_default=False,
    ),
]
Null = Annotated[
    str,
    typer.Option(help="pooled (over the run, by length) or 'per passage'.", rich_help_panel=RULES),
]
Swaps = Annotated[
    int | None,
    typer.Option(
        help="Off-topic passages put in a passage's place, a question. Default: two; more in a "
        "small run.",
        rich_help_panel=RULES,
        show_default=False,
    ),
]
OffTopic = Annotated[
    Path | None,
    typer.Option(
        help="A file of off-topic passages, a blank line between two. Default: those that come "
        "with mechattr.",
        rich_help_panel=METHOD,
        show_default=False,
    ),
]
Alpha = Annotated[float, typer.Option(help="Level of the tests.", rich_help_panel=RULES)]
Control = Annotated[
    str,
    typer.Option(
        help="What is held against it: p, or q (false discoveries over the run).",
        rich_help_panel=RULES,
    ),
]
Tau = Annotated[
    float | None,
    typer.Option(
        help="Nats above which an effect counts. Default: ln 2.",
        rich_help_panel=RULES,
        show_default=False,
    ),
]
Share = Annotated[
    float,
    typer.Option(
        help="And this part of what the passages do for the words that they help.",
        rich_help_panel=RULES,
    ),
]
Rules = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Another threshold of the rules: strong, part, carried, memory, such as part=0.2; "
        "or temperature, of a generated answer. Repeat for several.",
        rich_help_panel=RULES,
        show_default=False,
    ),
]
Entails = Annotated[
    str | None,
    typer.Option(
        help="module:function(premise, statement) -> bool; turns 'cited and used' into "
        "'supported' where it says yes.",
        rich_help_panel=RULES,
        show_default=False,
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option(help="Of a generated answer.", min=1, rich_help_panel=METHOD)
]
Out = Annotated[
    Path,
    typer.Option(
        help="The lines, one a statement. Beside it X.manifest.json, and X.measured.jsonl, from "
        "which an interrupted run goes on.",
        rich_help_panel=OUT,
    ),
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", help="Overwrite what an earlier run measured.", rich_help_panel=OUT),
]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        help="Exit with code 3 where a rate is beyond this: cited-but-unused>0.1, "
        "statements:unsupported>5%, problems>0. Repeat for several.",
        rich_help_panel=OUT,
        show_default=False,
    ),
]
