"""The page of a comparison: findings as a table, and a picture of each column that drifted."""

import html
from collections.abc import Mapping, Sequence

import numpy as np

from bmx.feedback.drift import Column, Finding, counts, witness
from bmx.runtime.report import Section, layout
from bmx.runtime.writer import brief

BINS = 30
MAX_CATEGORIES = 12  # of a picture: those whose shares differ most
KEYS = (
  '<p class="soft"><span class="key" style="--key: #3b82f6"></span>reference &#160; '
  '<span class="key" style="--key: #ea580c"></span>window</p>'
)


def rows_of(findings: Sequence[Finding]) -> list[tuple[str, ...]]:
  """Returns a head and a row of texts for each finding, for people; the smallest p-value first."""
  head = ('column', 'result', 'effect', 'p', 'adjusted p', 'test')
  said = lambda f: 'drifted' if f.drifted else 'calm'
  order = sorted(findings, key=lambda f: (f.adjusted, f.p, -f.effect))
  cells = lambda f: (said(f), f'{f.effect:.3f}', f'{f.p:.2g}', f'{f.adjusted:.2g}', f.test)
  return [head, *((f.name, *cells(f)) for f in order)]


def picture(finding: Finding, reference: Column, window: Column) -> Section:
  """Returns the two samples of a column: histograms, or shares of categories."""
  a, b = reference.values, window.values
  title = f'{finding.name}: {finding.test}, adjusted p {finding.adjusted:.2g}'
  if reference.kind == 'category':
    return Section(title, _shares(a, b))
  if reference.kind == 'vector':
    note = '<p class="soft">The direction in which the two samples differ most.</p>'
    return Section(title, note + _histogram(*witness(a, b)))
  return Section(title, _histogram(a, b))


def _histogram(a: np.ndarray, b: np.ndarray) -> str:
  """Shares of both samples in the same bins, as bars side by side."""
  parts = [x[np.isfinite(x)] for x in (a, b)]
  both = np.concatenate(parts)
  if not len(both):
    return '<p>No value is a finite number.</p>'
  edges = np.histogram_bin_edges(both, BINS)
  shares = [np.histogram(x, edges)[0] / max(len(x), 1) for x in parts]
  top = max(float(s.max()) for s in shares)
  bars = ''.join(
    f'<span title="{brief(float(low))} to {brief(float(high))}: {p:.1%} of the reference, {q:.1%} '
    f'of the window"><i style="height: {100 * p / top:.1f}%"></i>'
    f'<i class="other" style="height: {100 * q / top:.1f}%"></i></span>'
    for p, q, low, high in zip(*shares, edges, edges[1:], strict=False)
  )
  ends = f'<span>{brief(float(edges[0]))}</span><span>{brief(float(edges[-1]))}</span>'
  return f'<div class="bars">{bars}</div><div class="ends">{ends}</div>{KEYS}'


def _shares(a: np.ndarray, b: np.ndarray) -> str:
  """Shares of the categories that differ most, as a table with bars."""
  names, p, q = counts(a, b)
  p, q = p / len(a), q / len(b)
  order = np.argsort(-np.abs(p - q), kind='stable')
  top = max(float(p.max()), float(q.max()))
  rows = ''.join(
    f'<div class="pair"><span>{html.escape(names[i])}</span><div>'
    f'<p><i style="width: {65 * p[i] / top:.1f}%"></i>{p[i]:.1%}</p>'
    f'<p><i class="other" style="width: {65 * q[i] / top:.1f}%"></i>{q[i]:.1%}</p></div></div>'
    for i in order[:MAX_CATEGORIES]
  )
  rest = len(order) - MAX_CATEGORIES
  more = f'<p class="soft">and {rest} categories that differ less</p>' if rest > 0 else ''
  return f'<div>{rows}</div>{more}{KEYS}'


def page(
  title: str,
  facts: Mapping[str, str],
  findings: Sequence[Finding],
  reference: Sequence[Column],
  window: Sequence[Column],
) -> str:
  """Returns the page as HTML.

  Args:
    title: plain text.
    facts: of the comparison, for people.
    findings: of every column.
    reference: its columns.
    window: its columns.
  """
  head, *rows = rows_of(findings)
  drifted = [f for f in findings if f.drifted]
  columns = {c.name: (c, d) for c, d in zip(reference, window, strict=True)}
  order = sorted(drifted, key=lambda f: (f.adjusted, -f.effect))
  sections = [picture(f, *columns[f.name]) for f in order]
  said = f'{len(drifted)} of {len(findings)} columns drifted' if drifted else 'No column drifted'
  body = f"""<h1>{html.escape(title)}</h1>
<p><b>{said}</b></p>
<div class="grid">{layout.cards(sections)}</div>
<div class="grid"><div class="card wide"><h2>Columns</h2>{layout.grid(head, rows)}</div>
<div class="card wide"><h2>Comparison</h2>{layout.facts(facts)}</div></div>"""
  return layout.page(title, body, [])
