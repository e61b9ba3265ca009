"""A trained tagger as a finder of spans in texts of any length."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bmx.adapt import restore
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.data.text.spans import OUTSIDE, Span, spans_of, words_of
from bmx.data.text.token_classification import token_classification
from bmx.data.text.tokenizer import Subwords, load
from bmx.parallel import Layout, jit, make_mesh
from bmx.runtime.storage import place
from bmx.tasks.encoder import TokenClassification
from bmx.train import datafile
from bmx.train.state import abstract_params

ROWS = 16  # windows of a call
ENDS = '.!?'  # of sentences: a window that is full ends behind one in its second half

Place = tuple[int, int]  # (start, end) of a word


class _Loaded(NamedTuple):
  """A tagger in memory: (tokens, segment_ids) [ROWS, length] -> tag ids of the same shape."""

  predict: Callable[[np.ndarray, np.ndarray], np.ndarray]
  tokenizer: Subwords
  names: tuple[str, ...]
  length: int


@dataclasses.dataclass(frozen=True)
class Tagger:
  """Finds the spans that a run of `TokenClassification` tags, such as pii_tagger.

  The weights are read at the first call. A text is read in windows of as many tokens as the rows of
  the training data had.

  Attributes:
    path: directory of the run.
    step: of the checkpoint: 'latest', 'best' or a number.
  """

  path: str
  step: str = 'latest'

  def check(self) -> None:
    """Reads the weights. Raises InputError unless the folder is a run with IOB2 tags."""
    assert self._loaded

  def find(self, texts: Sequence[str]) -> list[list[Span]]:
    """Returns the spans of each text, in characters; see `check`."""
    words = [words_of(text) for text in texts]
    windows = [
      (n, window) for n, text in enumerate(texts) for window in self._windows(text, words[n])
    ]
    tags: list[list[str]] = [[] for _ in texts]
    for start in range(0, len(windows), ROWS):
      part = windows[start : start + ROWS]
      given = [[texts[n][a:b] for a, b in window] for n, window in part]
      for (n, _), found in zip(part, self._tags(given), strict=True):
        tags[n] += found
    return [spans_of(w, t) for w, t in zip(words, tags, strict=True)]

  def _windows(self, text: str, words: Sequence[Place]) -> list[list[Place]]:
    """Parts the words so that the tokens of each part fit a row."""
    if not words:
      return []
    loaded = self._loaded
    inner = loaded.tokenizer.inner
    budget = loaded.length - inner.num_special_tokens_to_add(False)
    encoded = loaded.tokenizer.encodings([[text[a:b] for a, b in words]], words=True)[0]
    counts = np.bincount([w for w in encoded.word_ids if w is not None], minlength=len(words))
    windows: list[list[Place]] = []
    first = 0
    while first < len(words):
      fits = np.searchsorted(counts[first:].cumsum(), budget, 'right')
      end = first + max(1, int(fits))
      half = first + (end - first) // 2
      ends = [n for n in range(half, end) if text[words[n][0]] in ENDS]
      end = ends[-1] + 1 if ends and end < len(words) else end
      windows.append(list(words[first:end]))
      first = end
    return windows

  def _tags(self, sentences: Sequence[list[str]]) -> list[list[str]]:
    """The tag of each word of at most `ROWS` sentences."""
    loaded = self._loaded
    data: Any = token_classification(
      '', loaded.tokenizer, loaded.length, given=[{'words': s} for s in sentences],
      fitted={'class_names': list(loaded.names)}, train=False,
    )  # fmt: skip
    rows = {k: np.zeros((ROWS, loaded.length), np.int32) for k in ('tokens', 'segment_ids')}
    for name, array in rows.items():
      array[: len(sentences)] = data.arrays[name]
    ids = loaded.predict(rows['tokens'], rows['segment_ids'])
    return [line['tags'] for line in data.present({'prediction': ids[: len(sentences)]})]

  @functools.cached_property
  def _loaded(self) -> _Loaded:
    if not self.path or not place(self.path).is_dir() or not restore.is_run(self.path):
      raise InputError(f'tagger={self.path!r}: expected the directory of a run of pii_tagger')
    stored = datafile.read(place(self.path))
    names = tuple(stored.state.get('class_names', ())) if stored is not None else ()
    if stored is None or not {n[:2] for n in names if n != OUTSIDE} <= {'B-', 'I-'} or not names:
      raise InputError(
        f'tagger={self.path!r}: expected a run whose classes are tags such as O, B-PERSON, '
        f'I-PERSON, found {", ".join(names[:5]) or "none"}; train pii_tagger'
      )
    model: Any = restore.model(self.path)
    layout = Layout(make_mesh({'data': 1}, jax.devices()[:1]))
    abstract = abstract_params(TokenClassification(model), layout)
    params = tree.nested(restore.load(self.path, abstract, step=self.step))
    program = jit(lambda p, *rows: model.apply({'params': p}, rows[0], None, rows[1]).argmax(-1),
                  layout)  # fmt: skip
    predict = lambda tokens, segments: np.asarray(program(params, tokens, segments))
    return _Loaded(predict, load(self.path), names, int(stored.metadata['length']))
