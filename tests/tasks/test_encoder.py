"""What encoders are trained for: masked words counted and weighed, and losses written out."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import chi2

from bmx.core import streams
from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.core.types import Batch, Facts, Noise
from bmx.data.shapes import Shapes
from bmx.data.text.windows import along
from bmx.data.transforms import Reorder
from bmx.models.bert import BERT, Classifier, Pretraining, Tagger
from bmx.ops.ring import zigzag
from bmx.parallel.sharding import unbox
from bmx.tasks import encoder as tasks
from bmx.tasks.encoder import MaskedLM, TokenClassification
from bmx.tasks.question_answering import QuestionAnswering
from bmx.train.gradients import Accumulate, Gradient
from tests.models.weights import drawn, jit

V, T, MASK, SPECIAL = 40, 64, 7, (0, 3, 7, 19, 39)
REAL = sorted(set(range(V)) - set(SPECIAL))
KEY = jax.random.PRNGKey(0)
NOISE = Noise(KEY, jnp.int32(0))


def bert(length=T, **options):
  return BERT(
    **{'vocab_size': V, 'max_seq_len': length, 'width': 16, 'depth': 1, 'heads': 2} | options
  )


def masked(next_sentence=False, rate=0.15, whole=False, **options):
  model = Pretraining(bert(**{'dropout': 0.0} | options), next_sentence)
  return MaskedLM(model, MASK, SPECIAL, rate, whole)


def texts(batch=3000, length=T, seed=0):
  """Rows of unequal length, special ids among them; one without a token, one without a real one."""
  random = np.random.default_rng(seed)
  tokens = random.choice(REAL, (batch, length)).astype(np.int32)
  tokens = np.where(random.random(tokens.shape) < 0.1, random.choice(SPECIAL, tokens.shape), tokens)
  sizes = random.integers(1, length + 1, batch)
  sizes[:2], tokens[1] = (0, length), SPECIAL[1]
  there = np.arange(length) < sizes[:, None]
  return {
    'tokens': np.where(there, tokens, 0).astype(np.int32),
    'segment_ids': there.astype(np.int32),
    'weights': np.ones(batch, np.float32),
  }


@functools.cache
def corrupter(task):
  return jit(lambda rows, key: task.corrupt(rows, key))


def corrupted(task, rows, seed=0):
  return jax.device_get(corrupter(task)(rows, jax.random.PRNGKey(seed)))


@pytest.fixture(scope='module')
def drawn_once():
  rows = texts()
  return rows, corrupted(masked(), rows)


def chosen_of(new):
  """Returns the positions to predict, bool [B, T]."""
  there = np.zeros(new['tokens'].shape, bool)
  np.put_along_axis(there, new['masked_positions'], new['weights'] > 0, axis=1)
  return there


def choosable(rows):
  return (rows['segment_ids'] > 0) & ~np.isin(rows['tokens'], SPECIAL)


def within(hits, n, p):
  """Five standard deviations of a binomial."""
  return abs(hits - n * p) < 5 * np.sqrt(n * p * (1 - p))


def even(counts):
  """Whether counts may be draws of equally likely things: chi-square, wrong once in 10,000."""
  expected = counts.sum() / len(counts)
  return ((counts - expected) ** 2 / expected).sum() < chi2.ppf(1 - 1e-4, len(counts) - 1)


def test_so_many_tokens_are_masked(drawn_once):
  rows, new = drawn_once
  real = choosable(rows).sum(1)
  room = round(0.15 * T)
  assert (
    new['masked_positions'].shape == new['targets'].shape == new['weights'].shape == (3000, room)
  )
  expected = [min(room, max(1, round(0.15 * n))) if n else 0 for n in real]
  np.testing.assert_array_equal(new['weights'].sum(1), expected)
  np.testing.assert_array_equal(chosen_of(new).sum(1), expected)
  assert set(np.unique(new['weights'])) == {0, 1}


@pytest.mark.parametrize('rate', [0.15, 0.3])
def test_the_share_is_rounded_as_python_rounds(rate):
  length = 120
  rows = {'tokens': np.full((length + 1, length), REAL[0], np.int32)}
  rows['segment_ids'] = (np.arange(length) < np.arange(length + 1)[:, None]).astype(np.int32)
  rows['weights'] = np.ones(length + 1, np.float32)
  expected = [max(1, round(rate * n)) if n else 0 for n in range(length + 1)]
  assert corrupted(masked(rate=rate), rows)['weights'].sum(1).tolist() == expected


def test_special_ids_and_padding_are_never_chosen(drawn_once):
  rows, new = drawn_once
  assert not (chosen_of(new) & ~choosable(rows)).any()


def test_targets_are_the_tokens_and_the_rest_stays(drawn_once):
  rows, new = drawn_once
  there = chosen_of(new)
  np.testing.assert_array_equal(
    new['targets'], np.take_along_axis(rows['tokens'], new['masked_positions'], axis=1)
  )
  np.testing.assert_array_equal(new['tokens'][~there], rows['tokens'][~there])
  np.testing.assert_array_equal(new['segment_ids'], rows['segment_ids'])
  assert all(len(set(row)) == len(row) for row in new['masked_positions'].tolist())


def test_eighty_ten_ten(drawn_once):
  rows, new = drawn_once
  there = chosen_of(new)
  before, after = rows['tokens'][there], new['tokens'][there]
  n, by_chance = there.sum(), 0.1 / len(REAL)
  assert n > 10_000
  assert within((after == MASK).sum(), n, 0.8)
  assert within((after == before).sum(), n, 0.1 + by_chance)
  assert within(((after != MASK) & (after != before)).sum(), n, 0.1 - by_chance)


def test_what_replaces_is_any_token_and_no_special_one(drawn_once):
  """Whatever stood there: those that are another token, by id and by distance from it."""
  rows, new = drawn_once
  there = chosen_of(new)
  before, after = rows['tokens'][there], new['tokens'][there]
  other = (after != before) & (after != MASK)
  assert set(after[other]) == set(REAL)
  index = np.full(V, -1)
  index[REAL] = np.arange(len(REAL))
  assert even(np.bincount(index[after[other]], minlength=len(REAL)))
  apart = (index[after[other]] - index[before[other]]) % len(REAL)
  assert even(np.bincount(apart, minlength=len(REAL))[1:])


def test_all_places_are_as_likely():
  rows = texts()
  rows['tokens'][:], rows['segment_ids'][:] = REAL[0], 1
  assert even(chosen_of(corrupted(masked(), rows)).sum(0))


def test_a_key_decides():
  task, rows = masked(), texts()
  same, again, other = (corrupted(task, rows, seed) for seed in (1, 1, 2))
  jax.tree.map(np.testing.assert_array_equal, same, again)
  differs = (chosen_of(same) != chosen_of(other)).any(1)
  assert differs[choosable(rows).sum(1) > 45].all()


def worded(batch=2000, length=24):
  """Words of one to six tokens, numbered from 1 as the data numbers them, special ones alone."""
  random = np.random.default_rng(3)
  rows = texts(batch, length, seed=3)
  begins = random.random((batch, length)) < 0.4
  alone = np.isin(rows['tokens'], SPECIAL)
  begins |= alone | np.roll(alone, 1, axis=1)
  begins[:, 0] = True
  return rows | {'words': (begins & (rows['segment_ids'] > 0)).cumsum(1).astype(np.int32)}


def test_whole_words_are_masked_whole_and_within_the_budget():
  """Of a word of more tokens than the budget, single tokens: nothing else would fill it."""
  rows = worded()
  new = corrupted(masked(whole=True), rows)
  there, real = chosen_of(new), choosable(rows)
  used = []
  for row in range(len(there)):
    budget = max(1, round(0.15 * real[row].sum()))
    words = {w: real[row] & (rows['words'][row] == w) for w in set(rows['words'][row])}
    for m in words.values():
      assert m.sum() > budget or there[row][m].all() or not there[row][m].any()
    assert there[row].sum() <= budget
    assert there[row].any() == real[row].any()
    used.append(there[row].sum() / budget)
  assert np.mean(used) > 0.95
  assert not (there & ~real).any()


def test_whole_words_that_fit_are_as_likely():
  """Twelve words of two tokens and a budget of four: two words, any two."""
  rows = texts(batch=2000, length=24)
  rows['tokens'][:], rows['segment_ids'][:] = REAL[0], 1
  rows['words'] = np.tile(np.repeat(np.arange(1, 13), 2), (2000, 1)).astype(np.int32)
  there = chosen_of(corrupted(masked(whole=True), rows))
  assert (there.sum(1) == 4).all()
  assert even(there[:, ::2].sum(0))


def test_words_of_one_token_are_masked_as_tokens_are():
  """Numbered up to the length of the row."""
  rows = texts(batch=2000, length=24)
  rows['tokens'][:], rows['segment_ids'][:] = REAL[0], 1
  for first in (0, 1):
    rows['words'] = np.tile(np.arange(24) + first, (2000, 1)).astype(np.int32)
    there = chosen_of(corrupted(masked(whole=True), rows))
    assert (there.sum(1) == 4).all()
    assert even(there.sum(0))


class Given(MaskedLM):
  """A batch that was corrupted before."""

  def corrupt(self, batch: Batch, key) -> Batch:
    return batch


class Table(nn.Module):
  """A model that compiles in no time: what follows from a token alone."""

  facts = Facts(vocab_size=V)

  @nn.compact
  def __call__(self, tokens, positions, segment_ids, types, places=None, *, train=False):
    x = nn.Embed(V, 8)(tokens)
    if places is None:
      places = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    there = jnp.take_along_axis(x, places[..., None], axis=1)
    return nn.Dense(V)(there), nn.Dense(2)(x.mean(1))


TABLE = MaskedLM(Table(), MASK, SPECIAL)


def start(task, rows):
  return drawn(unbox(jax.eval_shape(task.init, NOISE, rows))['params'], scale=0.3)


@functools.cache
def evaluator(task):
  return jit(lambda params, rows: task.loss({'params': params}, rows, NOISE, train=False))


def evaluate(task, params, rows):
  loss, count, metrics, _ = jax.device_get(evaluator(task)(params, rows))
  assert [loss, count] == metrics['loss'].tolist(), 'the sum is minimized'
  return metrics


def pairs(batch=6, length=24):
  random = np.random.default_rng(1)
  rows = texts(batch, length, seed=5)
  return rows | {
    'types': random.integers(0, 2, (batch, length)).astype(np.int32),
    'next': random.integers(0, 2, batch).astype(np.int32),
  }


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_loss_is_the_cross_entropy_at_the_masked_places():
  """And where the model has the second head, M times that of the rows is added."""
  task, rows = masked(next_sentence=True, vocab_pad=8), pairs()
  params = start(task, rows)
  new = jax.device_get(jit(task.corrupt)(rows, NOISE.fold(streams.PREPARE).key))
  inputs = [new[k] for k in ('tokens', 'segment_ids', 'types')]
  whole = jit(lambda p, t, s, y: task.model.apply({'params': p}, t, None, s, y))
  logits, second = whole(params, *inputs)
  assert logits.shape == (6, 24, V + 8)
  log = log_softmax(logits)[..., :V]
  masked_sum = hits = 0.0
  for b, t in zip(*np.nonzero(chosen_of(new)), strict=True):
    masked_sum -= log[b, t, rows['tokens'][b, t]]
    hits += log[b, t].argmax() == rows['tokens'][b, t]
  next_sum = -log_softmax(second)[np.arange(6), rows['next']].sum()
  count, room = new['weights'].sum(), new['weights'].shape[1]
  assert count and room == round(0.15 * 24)
  told = evaluate(task, params, rows)
  assert told['masked_loss'].tolist() == pytest.approx([masked_sum, count], rel=1e-5)
  assert told['accuracy'].tolist() == [hits, count]
  assert told['next_loss'].tolist() == pytest.approx([next_sum, 6], rel=1e-5)
  assert told['loss'].tolist() == pytest.approx([masked_sum + room * next_sum, count], rel=1e-5)
  assert told['next_accuracy'].tolist() == [
    (np.asarray(second).argmax(-1) == rows['next']).sum(), 6
  ]  # fmt: skip


def test_rows_without_weight_count_nothing():
  """As an evaluation pads its last batch; both shapes of weights."""
  task, rows = TABLE, pairs()
  params = start(task, rows)
  there = np.array([1, 1, 1, 1, 0, 0], np.float32)
  other = rows | {'tokens': np.where(there[:, None] > 0, rows['tokens'], REAL[3])}
  other['next'] = np.where(there > 0, rows['next'], 1 - rows['next'])
  given = evaluate(task, params, rows | {'weights': there})
  assert given['next_loss'][1] == 4
  assert given['loss'][1] == corrupted(task, rows)['weights'][:4].sum()
  padded = evaluate(task, params, other | {'weights': np.tile(there[:, None], 24)})
  jax.tree.map(np.testing.assert_array_equal, padded, given)
  nothing = evaluate(task, params, rows | {'weights': 0 * there})
  assert all(not np.any(v) for v in nothing.values())


def test_a_row_with_nothing_to_mask_still_says_what_follows():
  task, rows = TABLE, pairs()
  rows['tokens'][:], rows['segment_ids'][:] = SPECIAL[1], 1
  told = evaluate(task, start(task, rows), rows)
  assert told['masked_loss'].tolist() == [0, 0]
  assert told['next_loss'][1] == 6 and told['next_loss'][0] > 0


def test_micro_batches_add_up():
  """With the same masks; each micro-batch draws its own otherwise."""
  task, rows = TABLE, pairs()
  params, new = start(task, rows), corrupted(task, rows)
  inner = Gradient(Given(**vars(task)))
  run = lambda fn: jax.device_get(
    jit(lambda p, rows: tuple(fn({'params': p}, rows, NOISE)[:3]))(params, new)
  )
  whole, parts = run(inner), run(Accumulate(inner, 3, 6))
  assert whole[2]['loss'][0] > 0 and whole[2]['next_loss'][1] == 6
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, parts, whole)
  assert inner.coupling == 'none'


def test_a_model_learns_the_masked_words():
  """Every row is one token again and again: its neighbours say what was masked."""
  task = masked(rate=0.3)
  tokens = np.repeat(np.array(REAL[:16], np.int32)[:, None], 12, axis=1)
  rows = {'tokens': tokens, 'weights': np.ones(16, np.float32)}
  first, last = fit(task, rows, steps=120)
  assert first > 2
  assert last < 0.3


def fit(task, rows, steps):
  """-> (loss at first, mean loss of the last ten steps)."""
  tx, losses = optax.adam(1e-2), []
  params = start(task, rows)
  state = tx.init(params)

  @jit
  def step(params, state, rows, i):
    key = jax.random.fold_in(KEY, i)
    grads = Gradient(task)({'params': params}, rows, Noise(key, i))
    loss, count = grads.metrics['loss']
    updates, state = tx.update(jax.tree.map(lambda g: g / count, grads.sum), state)
    return optax.apply_updates(params, updates), state, loss / count

  for i in range(steps):
    params, state, loss = step(params, state, rows, i)
    losses.append(float(loss))
  return losses[0], np.mean(losses[-10:])


def sixteen(length=12):
  rows = texts(16, length, seed=8)
  rows['segment_ids'][:] = 1
  rows['tokens'][:, 0] = SPECIAL[1]
  return rows


def test_a_classifier_fits_sixteen_texts():
  random = np.random.default_rng(0)
  task = tasks.TextClassification(Classifier(bert(12, dropout=0.0), 3))
  rows = sixteen() | {'label': random.integers(0, 3, 16).astype(np.int32)}
  first, last = fit(task, rows, steps=100)
  assert last < 0.1 * first


def test_a_regression_fits_sixteen_texts():
  random = np.random.default_rng(0)
  task = tasks.TextRegression(Classifier(bert(12, dropout=0.0), 1))
  rows = sixteen() | {'y': random.normal(size=(16, 1)).astype(np.float32)}
  first, last = fit(task, rows, steps=100)
  assert last < 0.1 * first


INFO = {'vocab_size': V, 'length': T}
MASKING = INFO | {'mask': MASK, 'special': SPECIAL}
REFUSED = {
  'no tokens': (masked(), {'num_classes': 2}, 'the data has no tokens'),
  'vocabulary': (
    masked(),
    MASKING | {'vocab_size': V + 1},
    f'vocab_size={V}: expected at least {V + 1}',
  ),
  'length': (
    masked(),
    MASKING | {'length': T + 1},
    f'length={T + 1}: expected rows of at most max_seq_len={T}',
  ),
  'no mask': (masked(), MASKING | {'mask': -1}, 'the tokenizer has no .MASK.'),
  'mask': (masked(), MASKING | {'mask': 3}, 'task.mask=7, .*: expected 3 and .0, 3, 7, 19, 39.'),
  'special': (masked(), MASKING | {'special': (0, 7)}, 'task.special=.*: expected 7 and .0, 7.'),
  'rate 0': (masked(rate=0.0), MASKING, 'task.rate=0.0: expected 0 < rate < 1'),
  'rate 1': (masked(rate=1.0), MASKING, 'task.rate=1.0: expected 0 < rate < 1'),
  'only special': (
    MaskedLM(Pretraining(bert()), 4, tuple(range(V))),
    INFO,
    'a vocabulary beyond the special ids',
  ),
  'num_classes': (
    tasks.TextClassification(Classifier(bert(), 3)),
    INFO | {'num_classes': 2},
    'num_outputs=3: expected 2, the number of classes',
  ),
  'no classes': (tasks.TextClassification(Classifier(bert(), 3)), INFO, 'the data has no labels'),
  'long class': (
    tasks.TextClassification(Classifier(bert(), 3)),
    INFO | {'num_classes': 3, 'length': 99},
    'length=99: expected rows of at most',
  ),
  'targets': (
    tasks.TextRegression(Classifier(bert(), 3)),
    INFO | {'num_targets': 1},
    'num_outputs=3: expected 1, the number of targets',
  ),
  'image': (
    tasks.TextRegression(Classifier(bert(), 1)),
    {'num_targets': 1},
    'the data has no tokens',
  ),
  'no tags': (TokenClassification(Tagger(bert(), 3)), INFO, 'the data has no tags'),
  'tags': (
    TokenClassification(Tagger(bert(), 3)),
    INFO | {'class_names': 'OBIE'},
    'num_outputs=3: expected 4, the number of tags',
  ),
  'questions': (QuestionAnswering(Tagger(bert())), INFO, 'the data has no questions'),
  'outputs': (
    QuestionAnswering(Tagger(bert(), 3)),
    INFO | {'questions': 1},
    'num_outputs=3: expected 2, first and last',
  ),
  'longest': (
    QuestionAnswering(Tagger(bert()), 0),
    INFO | {'questions': 1},
    'task.longest=0: expected at least 1 token',
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_refused(name):
  task, info, message = REFUSED[name]
  with pytest.raises(InputError, match=message):
    task.validate(info)


def test_what_passes():
  masked().validate(MASKING)
  masked().validate(MASKING | {'special': SPECIAL[::-1], 'vocab_size': V - 1, 'length': T - 1})
  MaskedLM(Pretraining(bert()), MASK, SPECIAL[::-1]).validate(INFO)
  TokenClassification(Tagger(bert(), 3)).validate(INFO | {'class_names': 'OBI'})
  QuestionAnswering(Tagger(bert())).validate(INFO | {'questions': 5})


@pytest.mark.parametrize(('next_sentence', 'whole', 'missing'), [
  (True, False, 'next'), (False, True, 'words'),
])  # fmt: skip
def test_what_the_data_lacks(next_sentence, whole, missing):
  task, rows = masked(next_sentence, whole=whole), texts(4)
  with pytest.raises(InputError, match=f'batch: expected a key {missing}, not only'):
    jax.eval_shape(
      lambda p, rows: task.loss({'params': p}, rows, NOISE, train=True), start(task, rows), rows
    )


B, L = 8, 14  # of questions


def questions(seed=0, batch=B):
  """Scores, and contexts from some token on; row 0 has no answer, the last counts nothing."""
  random = np.random.default_rng(seed)
  begin, end = random.integers(2, 6, batch), random.integers(8, L + 1, batch)
  place = np.arange(L)
  context = (place >= begin[:, None]) & (place < end[:, None])
  first = random.integers(begin, end)
  last = random.integers(first, end)
  first[0] = last[0] = 0
  weights = np.ones(batch, np.float32)
  weights[-1] = 0
  rows = {'context': context, 'first': first, 'last': last}
  rows = {k: v.astype(np.int32) for k, v in rows.items()} | {'weights': weights}
  return random.normal(size=(batch, L, 2)).astype(np.float32), rows


def best_span(out, context, longest):
  """Every span, one after another -> ((first, last), its score)."""
  best, where = -np.inf, None
  for first in np.flatnonzero(context):
    for last in np.flatnonzero(context):
      score = out[first, 0] + out[last, 1]
      if first <= last < first + longest and score > best:
        best, where = score, (first, last)
  return where, best


@pytest.mark.parametrize('longest', [1, 3, 30])
def test_the_answer_is_the_best_span_in_the_context(longest):
  task = QuestionAnswering(Tagger(bert()), longest)
  answer, spans = jax.jit(task.postprocess), set()
  for seed in range(8):
    out, rows = questions(seed)
    told = answer(out, rows)
    for b in range(B):
      where, score = best_span(out[b], rows['context'][b], longest)
      assert told['prediction'][b].tolist() == list(where)
      assert told['score'][b] == pytest.approx(score - out[b, 0].sum(), abs=1e-5)
      spans.add(where[1] - where[0] + 1)
  assert spans == {1} if longest == 1 else max(spans) >= 3


def answer_loss(out, rows):
  """(loss, hits) of each row: softmax over the context and the first token."""
  losses, hits = [], []
  for b, scores in enumerate(out):
    context, *place = (rows[k][b] for k in ('context', 'first', 'last'))
    open = np.append(0, np.flatnonzero(context))
    logs = [log_softmax(scores[open, i]) for i in (0, 1)]
    at = [int(np.flatnonzero(open == p)[0]) for p in place]
    losses.append(-(logs[0][at[0]] + logs[1][at[1]]) / 2)
    hits.append(all(log.argmax() == a for log, a in zip(logs, at, strict=True)))
  return np.array(losses), np.array(hits)


def scored(task, out, rows):
  """All metrics of a score, the loss among them."""
  total, count, metrics = jax.jit(functools.partial(task.score, train=True))(out, rows)
  return {'loss': jnp.stack([total, count])} | metrics


def test_loss_of_answers_is_over_the_context():
  task, (out, rows) = QuestionAnswering(Tagger(bert())), questions()
  out[1, rows['first'][1], 0] = out[1, rows['last'][1], 1] = 9.0  # one is right
  losses, hits = answer_loss(out, rows)
  assert hits.any() and not hits.all()
  told = scored(task, out, rows)
  assert told['loss'].tolist() == pytest.approx([losses[:-1].sum(), B - 1], rel=1e-5)
  assert told['accuracy'].tolist() == [hits[:-1].sum(), B - 1]
  # What the question, the padding and the row without weight score is nothing to the loss.
  outside = rows['context'] == 0
  outside[:, 0], outside[-1] = False, True
  other = scored(task, np.where(outside[..., None], 1e4, out), rows)
  jax.tree.map(np.testing.assert_array_equal, other, told)


def test_answers_of_tokens_in_another_order_are_the_same():
  """As a cut sequence is trained: tokens lie in another order, places are counted as before."""
  task, (out, rows) = QuestionAnswering(Tagger(bert())), questions(batch=4)
  out, rows = out[:, :12], rows | {'context': rows['context'][:, :12]}
  rows['first'], rows['last'] = rows['first'].clip(0, 7), rows['last'].clip(0, 7)
  rows['tokens'] = np.zeros((4, 12), np.int32)
  places = zigzag(12, 2)

  class Given(Shapes):
    def rows(self, indices, positions):
      return rows

  spec = {k: Spec(v.shape[1:], v.dtype) for k, v in rows.items()} | {'tokens': along(12)}
  moved = Reorder(Given(spec, {}), places).rows(np.arange(4), np.arange(4))
  assert (moved['positions'][0] == places).all()
  for method in (functools.partial(task.score, train=True), task.postprocess):
    given, expected = jax.jit(method)(out[:, places], moved), jax.jit(method)(out, rows)
    jax.tree.map(np.testing.assert_array_equal, given, expected)


def test_loss_of_tags_is_that_of_the_tokens_with_weight():
  random = np.random.default_rng(0)
  out = random.normal(size=(3, 9, 5)).astype(np.float32)
  targets = random.integers(0, 5, (3, 9)).astype(np.int32)
  weights = random.choice([0.0, 1.0], (3, 9)).astype(np.float32)
  weights[2] = 0
  log = np.take_along_axis(log_softmax(out), targets[..., None], -1)[..., 0]
  rows = {'targets': targets, 'weights': weights}
  task = TokenClassification(Tagger(bert(), 5))
  told = scored(task, out, rows)
  assert told['loss'].tolist() == pytest.approx([-(log * weights).sum(), weights.sum()], rel=1e-5)
  hits = ((out.argmax(-1) == targets) * weights).sum()
  assert told['accuracy'].tolist() == [hits, weights.sum()]
  np.testing.assert_array_equal(
    task.postprocess(jnp.asarray(out), rows)['prediction'], out.argmax(-1)
  )
  poisoned = np.where(weights[..., None] > 0, out, np.nan)
  jax.tree.map(np.testing.assert_array_equal, scored(task, poisoned, rows), told)


def test_predictions_have_the_shapes_that_metrics_read():
  """With and without what a batch may lack."""
  full = pairs(length=24)
  for task, shape in (
    (tasks.TextClassification(Classifier(bert(24), 3)), (6,)),
    (TokenClassification(Tagger(bert(24), 3)), (6, 24)),
    (masked(next_sentence=True), (6, 24)),
  ):
    params = start(task, full)
    for rows in (full, {k: full[k] for k in ('tokens', 'weights')}):
      told = jax.eval_shape(
        lambda p, rows, t=task: t.predict({'params': p}, rows, NOISE), params, rows
      )
      assert told['prediction'].shape == shape


def test_segments_and_types_reach_the_model():
  task, rows = tasks.TextClassification(Classifier(bert(24), 3)), pairs()
  params = start(task, rows)
  run = jit(lambda rows: task.predict({'params': params}, rows, NOISE)['probability'])
  for name in ('types', 'segment_ids'):
    assert np.abs(run(rows | {name: 0 * rows[name]}) - run(rows)).max() > 1e-3


def test_tasks_are_values():
  task = masked()
  assert task == masked() and dataclasses.replace(task, rate=0.2) != task
