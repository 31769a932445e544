"""Read documents: a fenced block without a language holds commands, ``text`` and ``json`` what they print, ``python``
code, with ``title="NAME.py"`` that of a file."""

import re
import shlex

BLOCK = re.compile(r'^```(\w*)[^\n]*\n(.*?)^```', re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r'\d[\d.e+-]*')


def expand(word):
    """Expand {a,b} as bash does."""
    match = re.search(r'\{([^{}]*,[^{}]*)\}', word)
    if not match:
        return [word]
    return [
        one for choice in match[1].split(',') for one in expand(word[: match.start()] + choice + word[match.end() :])
    ]


def commands_in(block):
    """Yield the words of every command; a block that lays out files, or begins indented, holds none."""
    if block.startswith((' ', 'data/', '{')):
        return
    for line in block.replace('\\\n', ' ').splitlines():
        for part in line.split(' && '):
            words = [one for word in shlex.split(part, comments=True) for one in expand(word)]
            while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
                words = words[1:]
            if words:
                yield words


def shape_of(text):
    """Return a printed line without its numbers and runs of blanks."""
    return ' '.join(NUMBER.sub('0', text).split())


def not_printed(block, printed):
    """Return the lines of a block that nothing printed ends with, except for their numbers; ``...`` leaves some out."""
    printed_lines = {shape_of(line) for line in printed.replace('\r', '\n').splitlines()}
    expected = [shape_of(line) for line in block.splitlines() if line.strip() != '...']
    return [line for line in expected if not any(one.endswith(line) for one in printed_lines)]
