"""Connectionist temporal classification: loss, greedy and beam decoding.

B batch, S frames, K outputs, L units of a transcript, W beams. Output 0 is the blank. Transcripts
are filled up with 0. Source: Graves et al. 2006.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bmx.core.errors import InputError


def frames_needed(transcript: np.ndarray, length: np.ndarray) -> np.ndarray:
  """Returns the least number of frames of transcripts: their units, and one between equal ones.

  Args:
    transcript: int [N, L].
    length: int [N].
  """
  same = (transcript[:, 1:] == transcript[:, :-1]) & (transcript[:, 1:] > 0)
  return length + same.sum(1)


def check_frames(
  frames: np.ndarray, transcript: np.ndarray, length: np.ndarray, numbers: np.ndarray
) -> None:
  """Raises InputError naming the first example whose transcript has more units than frames allow.

  Its loss would be a finite number of about 100,000, which no guard rejects.

  Args:
    frames: outputs of the model, int [N].
    transcript: int [N, L].
    length: int [N].
    numbers: of the examples, int [N].
  """
  needed = frames_needed(transcript, length)
  bad = np.flatnonzero(needed > frames)
  if len(bad):
    i = bad[0]
    raise InputError(
      f'example {numbers[i]}: a transcript of {length[i]} units needs {needed[i]} frames (one more '
      f'between equal units), the model gives {frames[i]}; leave the example out, or lower '
      'strides of the model or hop of the data'
    )


def ctc_loss(
  logits: jax.Array, frames: jax.Array, transcript: jax.Array, length: jax.Array
) -> jax.Array:
  """Computes -log p(transcript), the sum over all alignments, in nats and float32: [B].

  Args:
    logits: [B, S, K].
    frames: of each example, int [B]; frames behind them are padding.
    transcript: int [B, L].
    length: int [B].
  """
  outside = lambda size, n: (jnp.arange(size)[None] >= n[:, None]).astype(jnp.float32)
  paddings = outside(logits.shape[1], frames), outside(transcript.shape[1], length)
  return optax.ctc_loss(logits.astype(jnp.float32), paddings[0], transcript, paddings[1])


def greedy(logits: jax.Array, frames: jax.Array) -> jax.Array:
  """Decodes the most likely output of each frame, without repetitions and blanks: int32 [B, S].

  Args:
    logits: [B, S, K].
    frames: of each example, int [B].
  """
  best = jnp.argmax(logits, -1).astype(jnp.int32)
  before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)))
  there = jnp.arange(best.shape[1])[None] < frames[:, None]
  kept = (best > 0) & (best != before) & there
  order = jnp.argsort(~kept, axis=1, stable=True)
  return jnp.take_along_axis(jnp.where(kept, best, 0), order, 1)


class Lexicon(NamedTuple):
  """An automaton of the transcripts that a word list allows; state 0 is the start.

  Attributes:
    next: state after a unit, int32 [states, K]; -1 where the unit is not allowed.
    final: whether a transcript may end in a state, bool [states].
  """

  next: np.ndarray
  final: np.ndarray


def lexicon(words: list[list[int]], num_outputs: int, between: int = 0) -> Lexicon:
  """Returns the automaton of sequences of words.

  Args:
    words: units of each word.
    num_outputs: K.
    between: unit between words; 0: each word is one unit.

  Raises:
    InputError: no words, a word without units, a word of several units without `between`.
  """
  if not words or not all(words):
    raise InputError('words: expected at least one word, and units in each')
  if not between and any(len(word) > 1 for word in words):
    raise InputError('words: expected words of one unit, or a unit between words')
  edges: list[dict[int, int]] = [{}]
  ends: set[int] = set()
  for word in words:
    state = 0
    for unit in word:
      if unit not in edges[state]:
        edges[state][unit] = len(edges)
        edges.append({})
      state = edges[state][unit]
    ends.add(state)
  if between:  # a word must follow: a state of its own, where no transcript ends
    edges.append(dict(edges[0]))
  for state in ends:
    edges[state] |= {between: len(edges) - 1} if between else edges[0]
  table = np.full((len(edges), num_outputs), -1, np.int32)
  for state, found in enumerate(edges):
    table[state, list(found)] = list(found.values())
  final = np.zeros(len(edges), bool)
  final[[0, *ends]] = True
  return Lexicon(table, final)


class Beams(NamedTuple):
  """The prefixes of one example, W of them.

  Attributes:
    units: int32 [W, L], filled up with 0.
    length: int32 [W].
    state: of the lexicon, int32 [W].
    blank: log probability of all alignments that end with a blank, [W].
    unit: of those that end with the last unit, [W].
  """

  units: jax.Array
  length: jax.Array
  state: jax.Array
  blank: jax.Array
  unit: jax.Array

  @property
  def total(self) -> jax.Array:
    """Log probability of each prefix, [W]."""
    return jnp.logaddexp(self.blank, self.unit)


def beam_search(
  logits: jax.Array,
  frames: jax.Array,
  num_beams: int,
  most: int,
  words: Lexicon | None = None,
) -> jax.Array:
  """Decodes by prefix beam search: keeps the most likely prefixes at each frame.

  A prefix counts with the sum of all its alignments. With words, only prefixes that they begin are
  kept, and the result ends with a whole word: it is empty where no kept prefix does.

  Args:
    logits: [B, S, K].
    frames: of each example, int [B].
    num_beams: W.
    most: L, units of a transcript.
    words: allowed transcripts; None: any.

  Returns:
    The most likely prefix of each example, int32 [B, L].

  Source: Graves 2012; Hannun et al. 2014.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
  one = lambda scores, n: _search(scores, n, num_beams, most, words)
  return jax.vmap(one)(log_probs, frames)


def _search(
  log_probs: jax.Array, frames: jax.Array, width: int, most: int, words: Lexicon | None
) -> jax.Array:
  dead = jnp.full((width,), -jnp.inf)
  zeros = jnp.zeros((width,), jnp.int32)
  start = Beams(jnp.zeros((width, most), jnp.int32), zeros, zeros, dead.at[0].set(0.0), dead)

  def step(beams: Beams, item: Any) -> tuple[Beams, None]:
    scores, number = item
    new = _extend(beams, scores, words)
    return jax.tree.map(lambda a, b: jnp.where(number < frames, a, b), new, beams), None

  beams, _ = jax.lax.scan(step, start, (log_probs, jnp.arange(len(log_probs))))
  total = beams.total
  if words is not None:
    total = jnp.where(jnp.asarray(words.final)[beams.state], total, -jnp.inf)
  best = jnp.argmax(total)
  return jnp.where(jnp.isfinite(total[best]), beams.units[best], 0)


def _extend(beams: Beams, scores: jax.Array, words: Lexicon | None) -> Beams:
  """Reads one frame: scores are log probabilities [K]."""
  width, most = beams.units.shape
  row, outputs = jnp.arange(width), jnp.arange(len(scores))
  last = jnp.where(beams.length > 0, beams.units[row, beams.length - 1], 0)
  total = beams.total
  blank = total + scores[0]
  unit = jnp.where(last > 0, beams.unit + scores[last], -jnp.inf)
  repeats = outputs[None] == last[:, None]
  longer = jnp.where(repeats, beams.blank[:, None], total[:, None]) + scores[None]
  following = jnp.zeros((width, len(scores)), jnp.int32)
  if words is not None:
    following = jnp.asarray(words.next)[beams.state]
  allowed = (outputs > 0)[None] & (beams.length < most)[:, None] & (following >= 0)
  longer = jnp.where(allowed, longer, -jnp.inf)
  # A prefix that another one extends to is kept already: their alignments are added.
  parent = beams.units.at[row, beams.length - 1].set(0)
  extends = (parent[None] == beams.units[:, None]).all(-1)
  extends &= (beams.length[None] == beams.length[:, None] + 1) & jnp.isfinite(total)[None]
  given = jnp.where(extends, longer[:, last], -jnp.inf)  # [from, to]
  unit = jnp.logaddexp(unit, given.max(0))
  taken = (extends[:, :, None] & repeats[None]).any(1)
  longer = jnp.where(taken, -jnp.inf, longer)
  kept = jnp.concatenate([jnp.logaddexp(blank, unit), longer.reshape(-1)])
  top, index = jax.lax.top_k(kept, width)
  is_new = index >= width
  origin, output = jnp.divmod(index - width, len(scores))
  origin = jnp.where(is_new, origin, index)
  output = jnp.where(is_new, output, 0)
  length = beams.length[origin]
  end = jnp.minimum(length, most - 1)
  written = jnp.where(is_new, output, beams.units[origin, end])
  return Beams(
    units=beams.units[origin].at[row, end].set(written),
    length=length + is_new,
    state=jnp.where(is_new, following[origin, output], beams.state[origin]),
    blank=jnp.where(is_new, -jnp.inf, blank[origin]),
    unit=jnp.where(is_new, top, unit[origin]),
  )
