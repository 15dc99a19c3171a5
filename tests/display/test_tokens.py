"""Tokens must be readable, labels unique, and nothing of a user's may become HTML."""

from __future__ import annotations

import pytest

from mechattr.display import position_labels, readable
from mechattr.display.tokens import LONGEST, player_and_token, printable, tokens_html
from tests.display.fakes import IOI, long_tokens


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" John", "·John"),
        ("John", "John"),
        ("  ", "··"),
        ("a b ", "a b·"),
        ("\n", "\\n"),
        (" \n\n", "·\\n\\n"),
        ("\t\r", "\\t\\r"),
        ("\u200b", "\\u200b"),
        ("\x1b[31m", "\\u001b[31m"),
        ("café", "café"),
        ("", "(empty)"),
    ],
)
def test_nothing_in_a_token_is_invisible(token, shown):
    assert readable(token) == shown


def test_a_long_token_is_cut_with_an_ellipsis():
    assert readable("x" * 50, LONGEST) == "x" * (LONGEST - 1) + "…"


def test_labels_are_unique_though_tokens_repeat():
    labels = position_labels([IOI], range(len(IOI)))
    assert labels[3] == "3 ·John"
    assert labels[9] == "9 ·John"
    assert len(set(labels)) == len(IOI)
    long = long_tokens()
    assert len(set(position_labels([long], range(600)))) == 600


def test_a_position_where_prompts_differ_is_labelled_by_its_number_alone():
    other = tuple(token.replace("Mary", "Anna") for token in IOI[:9])
    labels = position_labels([IOI, other], range(len(IOI)))
    assert labels[:3] == ["0 When", "1", "2 ·and"]
    assert labels[9] == "9 ·John"  # only the longer prompt has it
    assert position_labels([IOI], [None, "start", 99]) == ["None", "start", "99"]


def test_a_token_player_is_named_once():
    assert player_and_token("5: to", " to") == ("5 ·to", "")
    assert player_and_token("L5H3@5", " to") == ("L5H3@5", "·to")
    assert player_and_token("position 5", "") == ("position 5", "")


def test_highlighted_tokens_keep_spaces_and_line_breaks_and_are_escaped():
    html = tokens_html(
        ["<b>", " x", "\n", ""], [1.0, float("nan"), 0.0, -1.0], ['"', "", "", ""], 1
    )
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert 'title="&quot;"' in html
    assert "> x<" in html
    assert "↵\n" in html
    assert "∅" in html


def test_a_name_is_readable_whatever_is_in_it():
    assert player_and_token("p\x1b[2J:5: to", " to") == ("p\\u001b[2J:5 ·to", "")


def test_printable_keeps_blanks_and_lines_only():
    assert printable(" a\n\tb\x1b[2J\u202e") == " a\n\\tb\\u001b[2J\\u202e"
