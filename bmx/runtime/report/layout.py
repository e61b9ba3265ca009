"""What pages share: the page itself, charts with their notes, tables, numbers for people."""

import html
import pathlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bmx.runtime.report import curves, fragments, plots
from bmx.runtime.writer import brief

STYLE = pathlib.Path(__file__).with_name('page.css')
# Nothing is loaded, and scripts without the page's secret are not run.
POLICY = (
  "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'nonce-{nonce}'; "
  "base-uri 'none'; form-action 'none'"
)


def page(title: str, body: str, figures: Sequence[Mapping[str, Any]]) -> str:
  """Returns a whole page that loads nothing.

  Args:
    title: plain text.
    body: HTML.
    figures: of the charts in `body`, in order.
  """
  nonce = plots.new_nonce()
  text = f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY.format(nonce=nonce)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE.read_text(encoding='utf-8')}</style></head><body>
{body}
{plots.scripts(figures, nonce)}</body></html>
"""
  return text.encode('utf-8', 'replace').decode()  # halves of surrogate pairs have no UTF-8


def drawn(
  charts: Mapping[str, Mapping[str, curves.Curve]],
  markers: Sequence[plots.Marker] = (),
  look: Mapping[str, tuple[str, str]] | None = None,
) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
  """Returns (card, figure) of each chart, and notes on what they leave out.

  Args:
    charts: title -> curves by name.
    markers: vertical lines of all charts.
    look: colour and dash of each curve; by default in the order of each chart.
  """
  some = dict(list(charts.items())[: curves.MAX_CHARTS])
  shown = [plots.card(k, v, look or plots.looks(list(v)), markers) for k, v in some.items()]
  notes = []
  averaged = [c.logged / len(c.steps) for v in some.values() for c in v.values() if c.low]
  if averaged:
    notes.append(
      f'Curves of more than {curves.MAX_POINTS} values: each point is the mean of up to '
      f'{max(averaged):,.0f} of them, and the band spans the least to the largest.'
    )
  if len(charts) > len(some):
    notes.append(f'{len(charts) - len(some)} further metrics are in metrics.jsonl.')
  return shown, notes


def cards(sections: Iterable[Sequence[str]]) -> str:
  """Returns (title, HTML) of sections as cards, made harmless, see `fragments.clean`."""
  return ''.join(
    f'<div class="card"><h2>{html.escape(title)}</h2>{fragments.clean(body)}</div>'
    for title, body in sections
  )


def named(metric: str) -> str:
  """Name of a metric for people.

  >>> named('eval/valid/bits_per_byte'), named('loss')
  ('bits per byte (valid)', 'training loss')
  """
  parts = metric.split('/')
  last = parts[-1].replace('_', ' ')
  if parts[0] == 'eval' and len(parts) > 2:
    return f'{last} ({parts[1]})'
  return f'training {last}' if metric in ('loss', 'accuracy') else last


def day(seconds: float) -> str:
  """Local date and time of seconds since 1970."""
  return time.strftime('%Y-%m-%d %H:%M', time.localtime(seconds))


def duration(seconds: float) -> str:
  """Formats a time for people.

  >>> duration(0.25), duration(75.2), duration(7325)
  ('0.25 s', '1 min 15 s', '2 h 2 min')
  """
  whole = round(seconds)
  if seconds < 60:
    return f'{seconds:.3g} s'
  if whole < 3600:
    return f'{whole // 60} min {whole % 60} s'
  return f'{whole // 3600} h {whole % 3600 // 60} min'


def number(value: Any) -> str:
  """Formats a value; numbers as `brief` does."""
  return brief(value) if type(value) in (int, float) else str(value)


def facts(values: Mapping[str, Any]) -> str:
  """Returns a table of names and values, as HTML."""
  rows = ''.join(
    f'<tr><td>{html.escape(k.replace("_", " "))}</td><td>{html.escape(number(v))}</td></tr>'
    for k, v in values.items()
  )
  return f'<table class="facts">{rows}</table>'


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a table of texts as HTML; columns of numbers are right-aligned."""
  numeric = [
    all(r[i][:1].isdigit() or r[i][:1] in ('-', '') for r in rows) for i in range(len(head))
  ]
  kind = lambda i: ' class="n"' if numeric[i] and i else ''
  cells = lambda tag, row: ''.join(
    f'<{tag}{kind(i)}>{breaking(x)}</{tag}>' for i, x in enumerate(row)
  )
  body = ''.join(f'<tr>{cells("td", row)}</tr>' for row in rows)
  return f'<table><tr>{cells("th", head)}</tr>{body}</table>'


def breaking(text: str) -> str:
  """Escapes a text; lines may break after its slashes, underscores and dots."""
  return re.sub('([/_.])(?=[a-zA-Z])', r'\1<wbr>', html.escape(text))
