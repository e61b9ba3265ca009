"""Pairs of sentences: half follow each other, the others come from anywhere else."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmx.core.errors import InputError
from bmx.data.text.corpus import Corpus
from bmx.data.text.pairs import PairData, pairs
from tests.data.batched import batched
from tests.data.letters import Letters, sentences

CODER = Letters({'pad': 0, 'cls': 130, 'sep': 131, 'mask': 132})
CLS, SEP = 130, 131
SIZES = (4, 1, 7, 2, 6)  # sentences of each document
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def made(sizes=SIZES, length=5, tokens=1, **options):
  """Sentences of one token (or `tokens` each), 1000 + their number."""
  count = sum(sizes)
  lengths = np.broadcast_to(tokens, count)
  ids = np.repeat(1000 + np.arange(count), lengths).astype(np.int32)
  ends = np.cumsum(lengths, dtype=np.int64)
  corpus = Corpus(ids, ends, np.ones(len(ids), np.uint8), np.ones(len(ids), np.uint8))
  document = np.repeat(np.arange(len(sizes)), sizes)
  return batched(PairData, 4, corpus, document, 2000, length, tokenizer=CODER, **options)  # type: ignore


def drawn(data, count, start=0):
  """(A, B, whether B follows) of many rows."""
  places = np.arange(start, start + count)
  rows = data.rows(places % data.size, places)
  return rows['tokens'][:, 1] - 1000, rows['tokens'][:, 3] - 1000, 1 - rows['next']


def test_half_of_the_rows_follow():
  """Within 5 standard deviations of a fair coin."""
  *_, follows = drawn(made(), 4000)
  assert abs(follows.sum() - 2000) < 5 * (4000 / 4) ** 0.5


def test_b_follows_a_or_is_of_another_document():
  data = made()
  a, b, follows = drawn(data, 4000)
  np.testing.assert_array_equal(b[follows == 1], a[follows == 1] + 1)
  np.testing.assert_array_equal(data.document[b] == data.document[a], follows == 1)


def test_sentences_of_other_documents_are_as_likely_each():
  """χ² for each document of A: 99.99 % of 19 degrees of freedom is 51."""
  data = made()
  a, b, follows = drawn(data, 20_000)
  for document in np.unique(data.document[a]):
    chosen = b[(follows == 0) & (data.document[a] == document)]
    others = np.flatnonzero(data.document != document)
    counts = np.bincount(chosen, minlength=len(data.document))[others]
    assert counts.sum() == len(chosen) > 500
    expected = len(chosen) / len(others)
    assert ((counts - expected) ** 2 / expected).sum() < 51


def test_which_sentence_a_is_does_not_tell_whether_b_follows():
  a, _, follows = drawn(made(), 20_000)
  for sentence in np.unique(a):
    mine = follows[a == sentence]
    assert abs(mine.sum() - len(mine) / 2) < 5 * (len(mine) / 4) ** 0.5


def test_every_sentence_that_has_a_next_one_is_read_once_an_epoch():
  data = made()
  assert data.size == sum(SIZES) - len(SIZES)
  epoch = np.concatenate([data.indices(s)[0] for s in range(-(-data.size // 4))])[: data.size]
  a = data.rows(epoch, np.arange(data.size))['tokens'][:, 1] - 1000
  last = np.cumsum(SIZES) - 1
  assert sorted(a.tolist()) == sorted(set(range(sum(SIZES))) - set(last.tolist()))


def test_in_training_b_is_a_function_of_the_position():
  data = made()
  index = np.full(200, 3)
  whole = data.rows(index, np.arange(200))
  assert len({*whole['tokens'][:, 3].tolist()}) > 10
  some = np.array([17, 3, 180, 4])
  for name, value in made().rows(index[some], some).items():
    np.testing.assert_array_equal(value, whole[name][some])
  other = made(seed=1).rows(index, np.arange(200))
  assert not np.array_equal(other['tokens'], whole['tokens'])


def test_in_evaluation_b_is_a_function_of_the_index():
  data = made(train=False)
  np.testing.assert_array_equal(data.indices(1)[0], [4, 5, 6, 7])
  index = np.arange(data.size)
  rows, again = data.rows(index, index), data.rows(index[::-1], index + 999)
  for name in rows:
    np.testing.assert_array_equal(rows[name], again[name][::-1])
  assert 0 < rows['next'].sum() < data.size


@PROPERTY
@given(
  st.integers(5, 20), st.lists(st.integers(0, 30), min_size=4, max_size=4), st.integers(0, 10**6)
)
def test_a_row_is_framed_and_only_the_longer_text_is_cut(length, lengths, position):
  data = made((2, 2), length, lengths)
  rows = data.rows(np.array([0]), np.array([position]))
  tokens, real, types = (rows[k][0] for k in ('tokens', 'segment_ids', 'types'))
  used = real.sum()
  assert real[:used].all()
  assert not (tokens[used:].any() or types[used:].any())
  first, second = np.flatnonzero(tokens == SEP)
  assert (tokens[0], second) == (CLS, used - 1)
  np.testing.assert_array_equal(types[:used], [0] * (first + 1) + [1] * (second - first))
  a, b = tokens[1:first], tokens[first + 1 : second]
  assert set(a) <= {1000}
  assert len(set(b)) <= 1
  given_b = lengths[b[0] - 1000] if len(b) else None
  room = length - 3
  if given_b is not None:
    assert len(a) + len(b) == min(room, lengths[0] + given_b)
    assert len(a) == lengths[0] or len(a) >= min(len(b), room // 2)
    assert len(b) == given_b or len(b) >= len(a)


def test_rows_are_as_they_are_announced():
  data = made()
  rows = data.rows(data.indices(0)[0], np.arange(4))
  assert set(rows) == set(data.abstract)
  for name, spec in data.abstract.items():
    assert (rows[name].shape, rows[name].dtype) == (spec.shape, spec.dtype)
  assert rows['weights'].tolist() == [1] * 4
  assert data.resident() is None


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'length': 4}, 'length=4: a pair of texts needs at least 5 tokens'),
    ({'sizes': (9,)}, 'at least two documents'),
    ({'sizes': (1, 1, 1)}, 'documents of at least two sentences'),
  ],
)
def test_what_gives_no_pairs(options, message):
  with pytest.raises(InputError, match=message):
    made(**options)


def test_a_tokenizer_without_frame(tmp_path):
  with pytest.raises(
    InputError, match='pairs of texts: .* adds no token before .* and none between'
  ):
    batched(pairs, 2, 16, Letters({'eos': 133}))  # type: ignore


def test_documents_are_cut_into_sentences(tmp_path):
  path = tmp_path / 'a.jsonl'
  texts = ['One. Two!  Three?\nfour\n\n5.5 e.g.', 'Six', '', 'Seven. Eight.']
  path.write_text('\n'.join(json.dumps({'text': t}) for t in texts))
  data = batched(pairs, 2, 32, CODER, (str(path),), 'all', train=False)  # type: ignore
  found = [CODER.decode(data._sentence(n)) for n in range(len(data.document))]
  assert found == ['One.', 'Two!', 'Three?', 'four', '5.5 e.g.', 'Six', 'Seven.', 'Eight.']
  assert data.document.tolist() == [0, 0, 0, 0, 0, 1, 3, 3]
  assert data.size == 5
  assert data.metadata['special'] == (0, 130, 131, 132)
  assert (data.metadata['vocab_size'], data.metadata['mask']) == (140, 132)
  assert '8 sentences of 4 documents' in str(data.metadata['source'])


def test_splits_are_of_documents(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('\n\n'.join(' '.join(sentences(3, seed)) for seed in range(20)))
  known = {}
  for split in ('train', 'valid', 'all'):
    data = batched(pairs, 2, 64, CODER, (str(path),), split)  # type: ignore
    known[split] = {CODER.decode(data._sentence(n)) for n in range(len(data.document))}
    assert data.size == 2 * {'train': 18, 'valid': 2, 'all': 20}[split]
  assert known['train'] | known['valid'] == known['all']
  assert not known['train'] & known['valid']
