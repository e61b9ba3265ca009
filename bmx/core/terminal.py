"""Text for a terminal."""

import re

# Control characters but tab and line feed; marks and overrides of the direction of writing; halves
# of surrogate pairs, which no terminal's encoding has.
CONTROL = re.compile(
  '[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]'
)


def printable(text: str) -> str:
  r"""Escapes the control characters of a text, which a terminal would obey.

  Names and messages from foreign files may hold any characters.

  >>> printable('eps' + chr(27) + '[2J')
  'eps\\x1b[2J'
  """
  return CONTROL.sub(lambda match: ascii(match.group())[1:-1], text)
