"""Which passages did an answer really rely on? An audit of retrieval-augmented answers.

audit = ma.audit.run("smollm2-135m", "questions.jsonl")

Passages (or their sentences) are the players of a :class:`mechattr.RemovalGame`; the target is the
log probability of each statement of a given or generated answer. From a record to a line:

    reading.py, answering.py    a record; an answer in statements, with its citations
    template.py, question.py    the prompt in pieces; the question's games
    asking.py, joint.py         effects: necessity, sufficiency, surrogate, redundant sets
    nulls.py, offtopic.py       what an off-topic passage does in a passage's place
    measuring.py, ledger.py     one question measured; what is finished stays finished
    statistics.py, given.py     p, bounds, false discoveries, rates over questions
    verdicts.py, judging.py     the rules; measured questions judged
    running.py, result.py       a run; what it found
    inside.py, drilling.py      inside a used passage: which tokens, and which heads carry it
"""

from __future__ import annotations

from mechattr.audit.inside import inside
from mechattr.audit.plan import Plan
from mechattr.audit.reading import Problem, read
from mechattr.audit.records import Passage, Record
from mechattr.audit.result import Audit
from mechattr.audit.running import run

__all__ = ["Audit", "Passage", "Plan", "Problem", "Record", "inside", "read", "run"]
