"""CTC: loss and decoding against sums over all alignments, PyTorch, and plain Python."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.ops.ctc import (
  beam_search,
  check_frames,
  ctc_loss,
  frames_needed,
  greedy,
  lexicon,
)

S, K = 5, 4
FRAMES = np.array([5, 4, 3, 1])


def collapsed(path):
  """Removes repetitions, then blanks."""
  return tuple(k for k, _ in itertools.groupby(path) if k)


def likelihoods(log_probs):
  """Probability of every transcript: the sum over all alignments."""
  found = {}
  for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
    score = np.exp(sum(log_probs[t, k] for t, k in enumerate(path)))
    found[collapsed(path)] = found.get(collapsed(path), 0.0) + score
  return found


@pytest.fixture(scope='module')
def logits():
  return np.random.default_rng(0).normal(0, 1.5, (4, S, K)).astype(np.float32)


@pytest.fixture(scope='module')
def every(logits):
  """Likelihoods of all transcripts of each example."""
  log_probs = np.asarray(jax.nn.log_softmax(logits.astype(np.float64), -1))
  return [likelihoods(scores[:n]) for scores, n in zip(log_probs, FRAMES, strict=True)]


def padded(texts, size):
  table = np.zeros((len(texts), size), np.int32)
  for row, text in zip(table, texts, strict=True):
    row[: len(text)] = text
  return table, np.array([len(t) for t in texts], np.int32)


def test_the_loss_is_the_sum_over_all_alignments(logits, every):
  texts = [(1, 1, 2), (3, 1), (2, 2), ()]
  table, length = padded(texts, 3)
  got = ctc_loss(jnp.asarray(logits), jnp.asarray(FRAMES), jnp.asarray(table), jnp.asarray(length))
  expected = [-np.log(found[text]) for found, text in zip(every, texts, strict=True)]
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_loss_and_its_gradient_are_those_of_pytorch(torch):
  random = np.random.default_rng(1)
  logits, frames = random.normal(size=(3, 12, 6)).astype(np.float32), np.array([12, 9, 7])
  table, length = padded([(1, 1, 2, 5), (4, 3), (5, 5, 5)], 4)
  of = lambda x: ctc_loss(x, jnp.asarray(frames), jnp.asarray(table), jnp.asarray(length))
  loss, gradient = jax.value_and_grad(lambda x: of(x).sum())(jnp.asarray(logits))
  x = torch.tensor(logits, requires_grad=True)
  expected = torch.nn.functional.ctc_loss(
    x.log_softmax(-1).transpose(0, 1), torch.tensor(table), torch.tensor(frames),
    torch.tensor(length), reduction='sum',
  )  # fmt: skip
  expected.backward()
  assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
  np.testing.assert_allclose(gradient, x.grad, atol=1e-5)


def test_greedy_decoding_collapses_the_best_path(logits):
  got = np.asarray(greedy(jnp.asarray(logits), jnp.asarray(FRAMES)))
  for row, scores, n in zip(got, logits, FRAMES, strict=True):
    expected = collapsed(scores[:n].argmax(-1))
    assert tuple(row[: len(expected)]) == expected and not row[len(expected) :].any()


def test_wide_beams_find_the_most_likely_transcript(logits, every):
  got = np.asarray(beam_search(jnp.asarray(logits), jnp.asarray(FRAMES), 400, S))
  for row, found in zip(got, every, strict=True):
    best = max(found, key=found.get)
    assert tuple(row[row > 0]) == best and not row[len(best) :].any()


def reference(log_probs, width, allowed):
  """Prefix beam search in plain Python: prefix -> (p of a blank at the end, p of a unit)."""
  beams = {(): (1.0, 0.0)}
  for scores in np.exp(log_probs):
    new = {}

    def add(prefix, blank, unit, new=new):
      old = new.get(prefix, (0.0, 0.0))
      new[prefix] = old[0] + blank, old[1] + unit

    for prefix, (blank, unit) in beams.items():
      add(prefix, (blank + unit) * scores[0], unit * scores[prefix[-1]] if prefix else 0.0)
      for k in range(1, len(scores)):
        if allowed((*prefix, k)):
          before = blank if prefix and prefix[-1] == k else blank + unit
          add((*prefix, k), 0.0, before * scores[k])
    beams = dict(sorted(new.items(), key=lambda item: -sum(item[1]))[:width])
  return beams


@pytest.mark.parametrize('width', [1, 2, 5])
def test_narrow_beams_are_those_of_plain_python(width):
  random = np.random.default_rng(2)
  logits = random.normal(0, 2, (6, 14, 5)).astype(np.float32)
  frames = np.array([14, 14, 13, 10, 2, 1])
  got = np.asarray(beam_search(jnp.asarray(logits), jnp.asarray(frames), width, 14))
  for row, scores, n in zip(got, jax.nn.log_softmax(logits.astype(np.float64), -1), frames,
                            strict=True):  # fmt: skip
    beams = reference(np.asarray(scores)[:n], width, lambda _: True)
    assert tuple(row[row > 0]) == max(beams, key=lambda p: sum(beams[p]))


WORDS = [[1, 2], [1, 2, 2], [3]]  # unit 4 stands between words


def sentences(most):
  """All transcripts of `WORDS` of up to `most` units, and their beginnings."""
  whole, new = {()}, {tuple(w) for w in WORDS}
  while new:
    whole |= new
    new = {(*s, 4, *w) for s in new for w in WORDS if len(s) + 1 + len(w) <= most}
  return whole


def test_words_are_kept_whole():
  """The most likely transcript among those that the words allow, by all alignments."""
  random = np.random.default_rng(3)
  logits = random.normal(0, 2, (5, 6, 5)).astype(np.float32)
  frames = np.array([6, 6, 5, 4, 2])
  found = lexicon(WORDS, 5, 4)
  got = np.asarray(beam_search(jnp.asarray(logits), jnp.asarray(frames), 300, 6, found))
  whole = sentences(6)
  for row, scores, n in zip(got, jax.nn.log_softmax(logits.astype(np.float64), -1), frames,
                            strict=True):  # fmt: skip
    shares = likelihoods(np.asarray(scores)[:n])
    assert tuple(row[row > 0]) == max(whole & set(shares), key=shares.get)


def test_narrow_beams_with_words_are_those_of_plain_python():
  random = np.random.default_rng(4)
  logits = random.normal(0, 2, (5, 12, 5)).astype(np.float32)
  frames = np.full(5, 12)
  whole = sentences(12)
  begun = {s[:n] for s in whole for n in range(len(s) + 1)}
  begun |= {(*s, 4) for s in whole if s}
  got = beam_search(jnp.asarray(logits), jnp.asarray(frames), 4, 12, lexicon(WORDS, 5, 4))
  for row, scores in zip(np.asarray(got), jax.nn.log_softmax(logits.astype(np.float64), -1),
                         strict=True):  # fmt: skip
    beams = reference(np.asarray(scores), 4, begun.__contains__)
    ends = {p: sum(v) for p, v in beams.items() if p in whole}
    assert tuple(row[row > 0]) == (max(ends, key=ends.get) if ends else ())


def test_words_of_one_unit_need_nothing_between():
  found = lexicon([[1], [3]], K)
  logits = jnp.asarray(np.random.default_rng(5).normal(size=(8, S, K)).astype(np.float32))
  got = np.asarray(beam_search(logits, jnp.full(8, S), 50, S, found))
  assert not (got == 2).any() and (got == 1).any() and (got == 3).any()


def test_decoding_does_not_depend_on_the_batch_or_padding(logits):
  """Frames behind the last one hold anything."""
  wide = np.concatenate([logits, np.full((4, 3, K), 9.0, np.float32)], 1)
  for decode in (greedy, lambda x, n: beam_search(x, n, 3, x.shape[1])):
    whole = np.asarray(decode(jnp.asarray(logits), jnp.asarray(FRAMES)))
    longer = np.asarray(decode(jnp.asarray(wide), jnp.asarray(FRAMES)))
    np.testing.assert_array_equal(longer[:, :S], whole)
    assert not longer[:, S:].any()
    one = np.asarray(decode(jnp.asarray(logits[2:3]), jnp.asarray(FRAMES[2:3])))
    np.testing.assert_array_equal(one, whole[2:3])


def test_a_transcript_longer_than_its_frames_is_refused():
  table, length = padded([(1, 2), (1, 1, 2), (3,)], 3)
  assert frames_needed(table, length).tolist() == [2, 4, 1]
  numbers = np.array([10, 11, 12])
  check_frames(np.array([2, 4, 1]), table, length, numbers)
  with pytest.raises(InputError, match='example 11: a transcript of 3 units needs 4 frames .*gives '
                     '3; leave the example out'):  # fmt: skip
    check_frames(np.array([2, 3, 1]), table, length, numbers)


def test_such_a_loss_is_finite_without_the_check():
  """The reason for the check (optax 0.2.8): no guard would see it."""
  table, length = padded([(1, 1, 2)], 3)
  loss = ctc_loss(jnp.zeros((1, 3, K)), jnp.array([3]), jnp.asarray(table), jnp.asarray(length))
  assert 9e4 < float(loss[0]) < np.inf


def test_wrong_words_are_named():
  for words, between in (([], 0), ([[1], []], 0), ([[1, 2]], 0)):
    with pytest.raises(InputError, match='words: expected'):
      lexicon(words, K, between)
