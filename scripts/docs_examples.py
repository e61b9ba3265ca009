"""Extension of griffe: examples of docstrings (`>>>`) are shown as blocks of code."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r'^>>> .*(?:\n.+)*', re.MULTILINE)  # to the next empty line


class Examples(griffe.Extension):
  """Puts every example of a docstring between fences."""

  def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
    if obj.docstring:
      obj.docstring.value = EXAMPLE.sub(r'```pycon\n\g<0>\n```', obj.docstring.value)
