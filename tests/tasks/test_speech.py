"""Speech recognition: padding, error rates, words, and bad examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bmx
from bmx import experiment
from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.data.audio.units import Units
from bmx.models.cnn import CNN
from bmx.models.speech import Recognizer, SpeechEncoder
from bmx.tasks.speech import CTC
from bmx.tasks.transcripts import cer, edits, wer

UNITS = Units(tuple(' abc'))
META = UNITS.facts


def model(**words):
  return Recognizer(
    SpeechEncoder(**{'width': 16, 'depth': 2, 'heads': 2, 'strides': (2, 2), **words}), 5
  )


def batch(frames=(21, 30, 9), length=30, mels=8):
  random = np.random.default_rng(0)
  features = random.normal(size=(len(frames), length, mels)).astype(np.float32)
  texts = np.array([[2, 1, 3, 0], [4, 4, 0, 0], [2, 0, 0, 0]], np.int32)[: len(frames)]
  return {
    'features': jnp.asarray(features), 'num_frames': jnp.asarray(frames, jnp.int32),
    'transcript': jnp.asarray(texts), 'transcript_length': jnp.asarray((texts > 0).sum(1)),
    'weights': jnp.ones(len(frames)),
  }  # fmt: skip


@pytest.mark.parametrize('words', [
  {}, {'positions': 'rotary', 'strides': (2, 2, 2), 'kernel_size': 5}, {'strides': (1, 2)},
])  # fmt: skip
def test_outputs_depend_neither_on_padding_nor_on_the_batch(words):
  """Noise behind the last frame, more padding, and an example alone: the same logits."""
  task, given = CTC(model(**words), META), batch()
  noise = Noise(jax.random.key_data(jax.random.key(0)), jnp.zeros((), jnp.int32))
  variables = jax.tree.map(jnp.asarray, task.init(noise, given))
  apply = lambda features, frames: task.model.apply(variables, features, frames)
  whole = apply(given['features'], given['num_frames'])
  wide = jnp.pad(given['features'], ((0, 0), (0, 7), (0, 0)), constant_values=3.0)
  longer = apply(wide, given['num_frames'])
  outputs = np.asarray(task.model.output_frames(given['num_frames']))
  total = 1
  for stride in task.model.encoder.strides:
    total *= stride
  assert outputs.tolist() == [-(-n // total) for n in (21, 30, 9)]
  for i, n in enumerate(outputs):
    alone = apply(given['features'][i : i + 1, : int(given['num_frames'][i])], None)
    assert alone.shape[1] == n
    np.testing.assert_allclose(longer[i, :n], whole[i, :n], atol=1e-5)
    np.testing.assert_allclose(alone[0], whole[i, :n], atol=1e-5)
  one = task.loss(variables, given, noise, train=False)
  two = task.loss(variables, {**given, 'features': wide}, noise, train=False)
  np.testing.assert_allclose(two.sum, one.sum, rtol=1e-5)


def test_a_row_without_weight_counts_nothing():
  task, given = CTC(model(), META), batch()
  noise = Noise(jax.random.key_data(jax.random.key(0)), jnp.zeros((), jnp.int32))
  variables = jax.tree.map(jnp.asarray, task.init(noise, given))
  some = {**given, 'weights': jnp.array([1.0, 0.0, 1.0])}
  rows = [task.loss(variables, {k: v[i : i + 1] for k, v in given.items()}, noise, train=False)
          for i in (0, 2)]  # fmt: skip
  got = task.loss(variables, some, noise, train=False)
  assert float(got.count) == 2
  np.testing.assert_allclose(got.sum, sum(float(r.sum) for r in rows), rtol=1e-5)


class Words:
  """Stands for a split: its metadata name the units."""

  metadata = Units(('no', 'oh', 'one', 'two'), 'words').facts


def rows(pairs, units):
  width = max(len(units.split(text)) for pair in pairs for text in pair)
  tables = np.zeros((2, len(pairs), width), np.int32)
  for i, pair in enumerate(pairs):
    for table, text in zip(tables, pair, strict=True):
      ids = units.encode(text, 'here')
      table[i, : len(ids)] = ids
  return {'transcript': tables[0], 'prediction': tables[1]}


PAIRS = [
  ('one two two', 'one two'), ('oh no', 'oh oh no'), ('two', ''), ('one', 'one'),
  ('no one', 'one no'), ('one two oh', 'no no no no'),
]  # fmt: skip


def test_error_rates_are_those_of_jiwer():
  jiwer = pytest.importorskip('jiwer', reason='the extra `reference` is not installed')
  true, found = (list(side) for side in zip(*PAIRS, strict=True))
  given = rows(PAIRS, Units.of(Words.metadata))
  assert wer(given, Words) == pytest.approx(jiwer.wer(true, found), abs=1e-12)
  assert cer(given, Words) == pytest.approx(jiwer.cer(true, found), abs=1e-12)
  random = np.random.default_rng(1)
  for _ in range(30):
    a, b = (''.join(random.choice(list('abc'), random.integers(1, 9))) for _ in range(2))
    out = jiwer.process_characters(a, b)
    assert edits(a, b) == out.substitutions + out.deletions + out.insertions


def test_error_rates_by_hand():
  given = rows(PAIRS, Units.of(Words.metadata))
  assert wer(given, Words) == pytest.approx((1 + 1 + 1 + 0 + 2 + 4) / 12)
  nothing = {**given, 'transcript': np.zeros_like(given['transcript'])}
  with pytest.raises(InputError, match='at least one word in the true transcripts'):
    wer(nothing, Words)
  with pytest.raises(InputError, match='reads prediction and transcript'):
    wer({'prediction': given['prediction']}, Words)


def test_texts_and_units():
  assert UNITS.encode('  A\tB ', 'here') == [2, 1, 3] and UNITS.decode([2, 1, 3, 0]) == 'a b'
  learned = Units.learn(['One two', 'two oh'], 'words', True)
  assert learned.names == ('oh', 'one', 'two') and Units.of(learned.facts) == learned
  assert Units.learn(['Ab a'], 'characters', False).names == (' ', 'A', 'a', 'b')
  with pytest.raises(InputError, match="x.wav has 'd': expected characters of"):
    UNITS.encode('bad', 'x.wav')
  with pytest.raises(InputError, match="units='letters': expected 'characters' or 'words'"):
    Units((), 'letters')  # type: ignore
  with pytest.raises(InputError, match='expected data with transcripts'):
    Units.of({'source': 'here'})


def test_predictions_are_texts_of_the_words():
  """With words only 'ab' and 'ca' occur, whatever the logits are; greedy decoding has others."""
  given = batch((30, 30, 30))
  logits = jnp.asarray(np.random.default_rng(0).normal(0, 3, (3, 8, 5)).astype(np.float32))
  free = CTC(model(), META)
  bound = CTC(model(), META, num_beams=20, words=('ab', 'ca'))
  texts = lambda task: [line['text'] for line in task.readable(
    {k: np.asarray(v) for k, v in task.postprocess(logits, given).items()}, META)]  # fmt: skip
  assert {word for text in texts(bound) for word in text.split()} == {'ab', 'ca'}
  assert not {word for text in texts(free) for word in text.split()} <= {'ab', 'ca'}
  line = free.readable({'prediction': np.array([[2, 3]]), 'transcript': np.array([[4, 0]])}, META)
  assert line == [{'text': 'ab', 'label': 'c'}]


def test_bad_tasks_and_rows_are_named():
  for make, message in (
    (lambda: CTC(model(), META, num_beams=0), 'num_beams=0: expected'),
    (lambda: CTC(model(), META, words=('a',)), 'num_beams=1: expected at least 2 with words'),
    (lambda: CTC(model(), META, num_beams=2, words=('dog',)), "'dog' has 'd': expected characters"),
    (lambda: CTC(CNN(5), META), 'task.model=CNN: expected a model with output_frames'),
    (lambda: CTC(model(), META).validate(Words.metadata | {'class_names': ['', 'x']}),
     'num_outputs=5: expected 2, the words of the data and the blank'),
    (lambda: CTC(model(), META).validate({'source': 'text'}), 'expected data with transcripts'),
  ):  # fmt: skip
    with pytest.raises(InputError, match=message):
      make()
  task, given = CTC(model(), META), {k: np.asarray(v) for k, v in batch().items()}
  task.check_rows(given, np.arange(3))
  with pytest.raises(InputError, match='example 0: a transcript of 3 units needs 3 frames .* 2;'):
    task.check_rows({**given, 'num_frames': np.array([5, 30, 9])}, np.arange(3))
  with pytest.raises(InputError, match='transcript=9 of example 1: expected'):
    task.check_rows({**given, 'transcript': given['transcript'] + [[0], [5], [0]]}, np.arange(3))


@pytest.mark.parametrize(('words', 'message'), [
  ({'kernel_size': 4}, 'kernel_size=4: expected an odd number'),
  ({'positions': 'learned'}, "positions='learned': expected one of sinusoidal, whisper, rotary"),
  ({'strides': (2, 0)}, r'strides=\(2, 0\): expected at least 1'),
  ({'dropout': 1.0}, r'dropout=1\.0: expected 0 <= dropout < 1'),
])  # fmt: skip
def test_bad_models_are_named(words, message):
  with pytest.raises(InputError, match=message):
    jax.eval_shape(model(**words).init, jax.random.key(0), jnp.zeros((1, 8, 4)))


def test_examples_are_checked_before_training(tmp_path):
  """Of recordings that are read as they are needed, all transcripts are compared with lengths."""
  pytest.importorskip('soundfile', reason='the extra `audio` is not installed')
  from tests.data.sounds import save, tone

  save(tmp_path / 'a.wav', tone(1.0, 16000), 16000)
  save(tmp_path / 'b.wav', tone(0.1, 16000), 16000)
  (tmp_path / 'transcripts.csv').write_text('file,text\na.wav,yes\nb.wav,oh yes\n')
  words = [
    'data.call=bmx.data.audio.speech:speech',
    f'data.path={tmp_path}',
    'batch_size=2',
    'data.split=all',
    'data.holdout=0',
  ]
  config, name = bmx.load('speech', words)
  with pytest.raises(
    InputError, match=r'example 1 .b\.wav.: a transcript of 6 units needs 6 frames'
  ):
    experiment.build(config, name, jax.devices()[:1], evals=False)
