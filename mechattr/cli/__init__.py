"""The command line: ``mechattr demo``, ``attribute``, ``compare``, ``circuit``, ``audit``,
``inside``, and lists of what they take: ``models``, ``methods``, ``tasks``.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 it failed
while running, 2 the request can't be carried out as given, 3 an audit is beyond a limit of
--fail-on, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer

from mechattr.cli.attribute_command import attribute
from mechattr.cli.audit_command import audit
from mechattr.cli.circuit_command import circuit
from mechattr.cli.compare_command import compare
from mechattr.cli.demo_command import demo
from mechattr.cli.inside_command import inside
from mechattr.cli.listings import methods, models, tasks
from mechattr.errors import InputError, MechattrError, NotSupportedError

app = typer.Typer(
    name="mechattr",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # main() says what went wrong, without a traceback
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command(no_args_is_help=True)(attribute)
app.command(no_args_is_help=True)(compare)
app.command(no_args_is_help=True)(circuit)
app.command(no_args_is_help=True)(audit)
app.command(no_args_is_help=True)(inside)
app.command()(models)
app.command()(methods)
app.command()(tasks)


def _version(wanted: bool) -> None:
    if wanted:
        import mechattr

        typer.echo(f"mechattr {mechattr.__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Attribute a language model's prediction to its tokens, heads, MLPs and neurons, and find the
    circuits that make it.

    Start with [bold]mechattr demo[/bold]: it explains one prediction of a small model on this
    machine and writes a report. Then ask your own question with
    [bold]mechattr attribute[/bold], see what its methods miss with
    [bold]mechattr compare[/bold], find the circuit of a task with
    [bold]mechattr circuit[/bold], or see which passages an answer relied on with
    [bold]mechattr audit[/bold], and where in them with [bold]mechattr inside[/bold]
    (their --help has examples).
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    try:
        with warnings.catch_warnings():  # which puts showwarning back
            warnings.showwarning = _show_warning
            app(arguments, prog_name="mechattr")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # the last stop: a traceback is no message
        if os.environ.get("MECHATTR_DEBUG"):
            raise
        message, code = _explained(error)
        _complain(message)
        sys.exit(code)


def _explained(error: Exception) -> tuple[str, int]:
    """What to say, and the exit code: 2 for what the caller can mend in the command, else 1."""
    if isinstance(error, (InputError, NotSupportedError)):
        return str(error), 2
    if isinstance(error, MechattrError):
        return str(error), 1
    advice = (
        "This is a bug in mechattr. Run the command again with MECHATTR_DEBUG=1 for the "
        "traceback, and report it."
    )
    return f"{type(error).__name__}: {error}\n{advice}", 1


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    # soft_wrap: aligned tokenisations in a message must not be broken into lines
    Console(stderr=True).print(
        Text.assemble(("Error: ", "bold red"), (message, "red")), soft_wrap=True
    )


def _show_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    """A warning as a sentence: the line of our source that raised it is of no use here."""
    if issubclass(category, (DeprecationWarning, PendingDeprecationWarning, FutureWarning)):
        return  # about the code of libraries, for whoever maintains it
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(f"Warning: {message}", style="yellow"), soft_wrap=True)
