"""Statements that are taken back: `The answer is 16. Wait, I forgot the price: she makes $18.`"""

import re

from persyn_datasets.signals.values import last_value

# At the beginning of a sentence or clause, for people wait for buses, too; and `actually` by itself
# takes nothing back.
_WITHDRAWN = re.compile(
    r"""(?:^|[.!?:;,(…—\n-]\s*[*_(]*|\b(?:no|oh|but),?\s+)
    (?:wait\b(?=\s*(?:[,.!?:;…—-]|(?:no|that|this|i|maybe|actually|a\s+(?:moment|minute|second))\b))
      |hold\s+on\b|hmm+\b|oops\b|sorry\b|correction\b|my\s+mistake\b
      |i\s+(?:made\s+an?\s+(?:mistake|error)|was\s+wrong)\b
      |(?:that|this)(?:['’]s|\s+is|\s+was)\s+(?:wrong|incorrect|not\s+(?:right|correct))\b
      |let\s+me\s+(?:correct|fix
         |re-?(?:calculate|check|compute|consider|count|do|evaluate|examine|read|solve|think|try))\b
      |actually,?\s+(?:no\b|(?:it|that|this|the\s+\w+)(?:['’]s|\s+(?:is|was|should|must))\b
         |i\s+(?:made|forgot|missed|mis\w+)\b|[-$€£¥₹*]*\d))""",
    re.IGNORECASE | re.VERBOSE,
)
# What confirms it after all: `Wait, are 3 trips enough? Yes, that is right.`
_CONFIRMED = re.compile(
    r"\b(?:yes|indeed|confirmed|(?:is|was|are|looks|seems|still)\s+(?:still\s+|in\s+fact\s+)?"
    r"(?:right|correct|fine|valid|the\s+same)|checks\s+out|stands|holds)\b",
    re.IGNORECASE,
)
_CHOICE = re.compile(
    r"\b(?:it|that|this|answer|option|choice)(?:['’]s|\s+(?:is|was|(?:should|must)\s+be))"
    r"\s+(?:actually\s+)?[*_(]*(?P<choice>[A-Z])[)*_]*(?=\.|\s*$|\s*\n)",
)


def said_instead(rest: str) -> str:
    """The value that replaces a statement, whose `rest` of the text follows it; empty: it stands.

    It stands where nothing takes it back, where no other value follows, and where it is confirmed
    in the end.
    """
    withdrawn = _WITHDRAWN.search(rest)
    if not withdrawn:
        return ""
    rest = rest[withdrawn.end() :]
    choices = list(_CHOICE.finditer(rest))
    value = choices[-1]["choice"] if choices else last_value(rest)
    if not value:
        return ""
    behind = rest.rpartition(value.rpartition(", ")[2])[2]
    return "" if _CONFIRMED.search(behind) else value
