"""The options that only ``mechattr inside`` has; the others are in ``options.py`` and
``audit_options.py``."""

from __future__ import annotations

from typing import Annotated

import typer

from mechattr.cli.options import ASKED, METHOD

Id = Annotated[
    str | None,
    typer.Option(
        "--id",
        help="The question, by its id in the file (without one: its line). Default: the only one.",
        rich_help_panel=ASKED,
        show_default=False,
    ),
]
Pid = Annotated[
    str | None,
    typer.Option(
        help="The passage, by its pid; or a sentence of it, p3#2, as an audit of sentences has it. "
        "Default: the only one.",
        rich_help_panel=ASKED,
        show_default=False,
    ),
]
Sid = Annotated[
    str | None,
    typer.Option(
        help="The statement: s1 is the answer's first. Default: the only one.",
        rich_help_panel=ASKED,
        show_default=False,
    ),
]
Tokens = Annotated[
    str,
    typer.Option(
        "--method",
        help="How tokens are scored: a name from [bold]mechattr methods[/bold], several with "
        "commas, or none.",
        rich_help_panel=METHOD,
    ),
]
Heads = Annotated[
    str,
    typer.Option(
        help="How heads are scored: activation_patching (exact, slow), retrieval, or any "
        "other method; several with commas, or none.",
        rich_help_panel=METHOD,
    ),
]
Operator = Annotated[
    str,
    typer.Option(
        help="What an absent token is: remove (cut out), or mask (attention to it), which methods "
        "with gradients need.",
        rich_help_panel=METHOD,
    ),
]
Unit = Annotated[str, typer.Option(help="token, word or sentence.", rich_help_panel=METHOD)]
Temperature = Annotated[
    float,
    typer.Option(help="Of a generated answer: that of the audit.", min=0.0, rich_help_panel=METHOD),
]
