"""Attributions for people: tokens colored by weight, heat maps over images, bars of features."""

import html
from collections.abc import Mapping, Sequence

import numpy as np

from bmx.data.text.protocol import Tokenizer
from bmx.runtime.report import Section, layout
from bmx.runtime.writer import brief
from bmx.tasks.illustrations import encoded, picture

RAISES, LOWERS = '#3b82f6', '#ea580c'  # colors of the page
FAINTEST = 0.35  # of a picture that lies below a heat map
NEWLINE, SHOWN_NEWLINE = '\n', '⏎\n'
MAX_BARS = 40  # of one example; those of the smallest size are left out


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
  """Returns the text that each token adds to those before it; names of special tokens.

  A token that ends within a character adds '', and the one that completes it the character.
  """
  names = {i: name for name, i in tokenizer.hidden.items()}
  found, before, start = [], '', 0
  for i, token in enumerate(ids):
    if token in names:
      found.append(names[token])
      before, start = '', i + 1
      continue
    text = tokenizer.settled(ids[start : i + 1])
    grows = text.startswith(before)
    found.append(text[len(before) :] if grows else tokenizer.decode([token]))
    before = text
  return found


def tokens(texts: Sequence[str], values: np.ndarray) -> str:
  """Returns a text whose tokens are colored by weight, as HTML.

  Args:
    texts: of the tokens.
    values: float [T].
  """
  shades = _shares(values)
  cells = ''.join(
    f'<span style="background: {_color(share)}" title="{brief(float(value))}">'
    f'{html.escape(text).replace(NEWLINE, SHOWN_NEWLINE) or "·"}</span>'
    for text, share, value in zip(texts, shades, values, strict=True)
  )
  return f'<p class="tokens">{cells}</p>'


def heat_map(image: np.ndarray, values: np.ndarray) -> str:
  """Returns an image, and the same in gray below its attributions, as HTML.

  Args:
    image: [I, J, C].
    values: float [I, J].
  """
  shown = image if image.shape[-1] in (1, 3) else image.mean(-1, keepdims=True)
  gray = np.nan_to_num(shown.astype(np.float32)).mean(-1)
  low, high = gray.min(), gray.max()
  gray = FAINTEST + (1 - FAINTEST) * (gray - low) / max(high - low, 1e-12)
  shares = np.nan_to_num(_shares(values))[..., None]
  color = np.where(shares > 0, _rgb(RAISES), _rgb(LOWERS))
  mixed = 255 * gray[..., None] * (1 - np.abs(shares)) + color * np.abs(shares)
  return picture(shown) + encoded(mixed.astype(np.uint8))


def bars(
  names: Sequence[str],
  values: np.ndarray,
  errors: np.ndarray | None = None,
  ordered: bool = False,
) -> str:
  """Returns a bar for each feature, the largest first, as HTML.

  Args:
    names: of the features.
    values: float [G].
    errors: float [G], deviations that stand beside the numbers; None: without.
    ordered: features stay in their order, all of them.
  """
  order = np.argsort(-np.abs(values), kind='stable')[:MAX_BARS]
  order = np.arange(len(values)) if ordered else order
  shares = 65 * np.abs(_shares(values))
  spread = [''] * len(values) if errors is None else [f' ± {brief(float(e))}' for e in errors]
  rows = ''.join(
    f'<div class="pair"><span>{html.escape(names[i])}</span>'
    f'<p><i class="{"" if values[i] >= 0 else "other"}" style="width: {shares[i]:.1f}%"></i>'
    f'{brief(float(values[i]))}{spread[i]}</p></div>'
    for i in map(int, order)
  )
  rest = len(values) - len(order)
  return f'<div>{rows}</div>' + (f'<p class="soft">and {rest} smaller ones</p>' if rest > 0 else '')


def legend(signed: bool) -> str:
  """Returns the meaning of the colors, as HTML."""
  key = lambda color, text: f'<span class="key" style="--key: {color}"></span>{text} &#160; '
  if not signed:
    return f'<p class="soft">{key(RAISES, "the output depends on it")}</p>'
  return f'<p class="soft">{key(RAISES, "raises the output")}{key(LOWERS, "lowers it")}</p>'


def page(
  title: str, note: str, facts: Mapping[str, str], sections: Sequence[Section], wide: bool = False
) -> str:
  """Returns a whole page.

  Args:
    title: plain text.
    note: HTML below it.
    facts: of the explanation, for people.
    sections: one for each example, or for the whole model.
    wide: whether each takes the width of the page.
  """
  cards = layout.cards(sections)
  cards = cards.replace('<div class="card"><h2>', '<div class="card wide"><h2>') if wide else cards
  body = f"""<h1>{html.escape(title)}</h1>
{note}
<div class="grid">{cards}</div>
<div class="grid"><div class="card wide"><h2>Explanation</h2>{layout.facts(facts)}</div></div>"""
  return layout.page(title, body, [])


def _shares(values: np.ndarray) -> np.ndarray:
  """Values in units of the largest size."""
  return values / max(float(np.abs(values).max(initial=0)), 1e-30)


def _color(share: float) -> str:
  """The color of a weight -1 to 1, more opaque the larger it is."""
  return f'{RAISES if share >= 0 else LOWERS}{round(200 * abs(share)):02x}'


def _rgb(color: str) -> np.ndarray:
  return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
