"""Documents of titled parts as Markdown and as HTML: model cards."""

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bmx.runtime.report import layout


class Part(NamedTuple):
  """A part of a document.

  Attributes:
    title: plain text.
    text: a paragraph below it, plain text; '' without.
    head: of a table; () without.
    rows: of the table, as long as its head.
  """

  title: str
  text: str = ''
  head: Sequence[str] = ()
  rows: Sequence[Sequence[str]] = ()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """Returns the lines of a table in Markdown."""
  line = lambda cells: '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'
  return [line(head), '|' + '---|' * len(head), *map(line, rows)]


def versions(known: Mapping[str, str]) -> str:
  """Returns names and versions of packages as one line, without those that are missing."""
  return ', '.join(f'{k} {v}' for k, v in known.items() if v)


def markdown(title: str, front: Mapping[str, str], parts: Sequence[Part]) -> str:
  """Returns a document in Markdown.

  Args:
    title: of the document.
    front: fields before it, as model hubs read them.
    parts: in order.
  """
  lines = ['---', *(f'{k}: {v}' for k, v in front.items()), '---', '', f'# {title}']
  for part in parts:
    lines += ['', f'## {part.title}'] if part.title else []
    lines += ['', part.text] if part.text else []
    rows = [[_line(cell) for cell in row] for row in part.rows]
    lines += ['', *table(part.head, rows)] if rows else []
  return '\n'.join(lines) + '\n'


def page(title: str, parts: Sequence[Part]) -> str:
  """Returns a document as a whole page of HTML that loads nothing."""
  cards = ''.join(
    f'<div class="card wide"><h2>{html.escape(p.title)}</h2>'
    f'{f"<p>{html.escape(p.text)}</p>" if p.text else ""}'
    f'{layout.grid(p.head, p.rows) if p.rows else ""}</div>'
    for p in parts
  )
  body = f'<h1>{html.escape(title)}</h1><div class="grid">{cards}</div>'
  return layout.page(title, body, [])


def _line(text: str) -> str:
  """A text on one line, which no cell can leave, with characters of HTML kept as text."""
  return ' '.join(text.split()).replace('<', '&lt;')
