"""Documents in rows: no token lost or doubled, none seeing another document, no row over-full."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmx.core.errors import InputError
from bmx.data.text import corpus as corpora
from bmx.data.text import packing
from bmx.data.text.clean import Unicode
from bmx.data.text.corpus import Corpus, encode
from bmx.data.text.packing import PackedData, best_fit, packed
from bmx.data.text.tokenizer import Bytes
from tests.data.batched import Batched, batched
from tests.data.letters import Letters

PROPERTY = settings(max_examples=80, deadline=None, derandomize=True)
CLS, SEP = 1, 2  # of hand-made rows; tokens of documents are above
FRAMES = {'none': ((), ()), 'both': ((CLS,), (SEP,)), 'end': ((), (SEP,)), 'begin': ((CLS,), ())}
LENGTHS = st.lists(st.integers(0, 23), min_size=1, max_size=25).filter(any)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def written(lengths, seed=0):
  """Documents whose tokens are 1000 d + place + 10: a token says where it belongs."""
  tokens = [1000 * d + np.arange(n) + 10 for d, n in enumerate(lengths)]
  draw = np.random.default_rng(seed)
  size = sum(lengths)
  starts, learned = (draw.integers(0, 2, size).astype(np.uint8) for _ in range(2))
  ends = np.cumsum(lengths, dtype=np.int64)
  return Corpus(np.concatenate(tokens).astype(np.int32), ends, starts, learned)


def rows_of(corpus, length, frame='both', whole=True, words=False, seed=0, train=True):
  prefix, suffix = FRAMES[frame]
  examples = PackedData(corpus, 10**6, length, prefix, suffix, whole, words)
  data = Batched(examples, 4, seed, train)
  return data, data.rows(np.arange(data.size), np.arange(data.size))


def segments(rows):
  """The ids of every segment, row by row, without padding."""
  for tokens, ids in zip(rows['tokens'], rows['segment_ids'], strict=True):
    for segment in range(1, ids.max() + 1):
      yield tokens[ids == segment].tolist()


def cuts(lengths, room):
  """The pieces that documents are to be cut into: (document, first, last)."""
  return [(d, a, min(a + room, n)) for d, n in enumerate(lengths) for a in range(0, n, room) if n]


@PROPERTY
@given(LENGTHS, st.integers(3, 12), st.sampled_from([*FRAMES]), st.booleans())
def test_every_token_appears_once_framed_and_in_order(lengths, length, frame, whole):
  prefix, suffix = FRAMES[frame]
  _, rows = rows_of(written(lengths), length, frame, whole)
  expected = []
  for d, a, b in cuts(lengths, length - len(prefix) - len(suffix)):
    begins, ends = whole or a == 0, whole or b == lengths[d]
    text = [1000 * d + place + 10 for place in range(a, b)]
    expected.append([*prefix * begins, *text, *suffix * ends])
  assert sorted(segments(rows)) == sorted(expected)


@PROPERTY
@given(LENGTHS, st.integers(3, 12), st.sampled_from([*FRAMES]))
def test_segments_and_positions_count_up_and_padding_is_behind(lengths, length, frame):
  data, rows = rows_of(written(lengths), length, frame)
  for tokens, ids, places in zip(*(rows[k] for k in packing.KEYS), strict=True):
    real = ids > 0
    used = real.sum()
    assert used > 0
    assert real[:used].all()
    assert (tokens[~real] == 0).all()
    assert set(np.diff(ids[real])) <= {0, 1}
    assert ids[0] == 1
    begins = np.append(True, np.diff(ids[real]) == 1)
    since = np.arange(used) - np.maximum.accumulate(np.where(begins, np.arange(used), 0))
    np.testing.assert_array_equal(places[real], since)
    assert (places[~real] == 0).all()
  padding = 1 - (rows['segment_ids'] > 0).sum() / rows['segment_ids'].size
  assert data.padding == pytest.approx(padding, abs=1e-12)
  assert data.metadata['padding'] == data.padding


@PROPERTY
@given(LENGTHS, st.integers(3, 12), st.booleans(), st.integers(0, 9))
def test_targets_follow_in_the_document_and_are_to_be_learned(lengths, length, whole, seed):
  corpus = written(lengths, seed)
  first = np.append(0, corpus.ends[:-1])
  learns = lambda token: corpus.loss_mask[first[token // 1000] + token % 1000 - 10]
  _, rows = rows_of(corpus, length, 'both', whole)
  for tokens, ids, targets, weights in zip(
    *(rows[k] for k in ('tokens', 'segment_ids', 'targets', 'weights')), strict=True
  ):
    for t in range(length):
      follows = t + 1 < length and ids[t + 1] == ids[t] > 0
      if follows:
        assert targets[t] == tokens[t + 1]
        # The end of a document or piece is learned where its last token is.
        asked = tokens[t] if tokens[t + 1] == SEP else tokens[t + 1]
        assert weights[t] == learns(asked)
      else:
        assert weights[t] == 0


def test_a_row_by_hand():
  """Documents of 3, 1, 6 and 5 tokens, each with an end; the third is cut."""
  tokens = np.arange(10, 25, dtype=np.int32)
  corpus = Corpus(tokens, np.array([3, 4, 10, 15]), np.ones(15, np.uint8), np.ones(15, np.uint8))
  data, rows = rows_of(corpus, 6, 'end', whole=False)
  by_first = {int(row[0]): n for n, row in enumerate(rows['tokens'])}
  got = {k: rows[k][by_first[10]].tolist() for k in rows}
  assert got == {
    'tokens': [10, 11, 12, SEP, 13, SEP],
    'segment_ids': [1, 1, 1, 1, 2, 2],
    'positions': [0, 1, 2, 3, 0, 1],
    'targets': [11, 12, SEP, 13, SEP, 0],
    'weights': [1, 1, 1, 0, 1, 0],
  }
  others = [rows['tokens'][by_first[first]].tolist() for first in (14, 19, 20)]
  assert others == [[14, 15, 16, 17, 18, 0], [19, SEP, 0, 0, 0, 0], [20, 21, 22, 23, 24, SEP]]
  assert data.size == 4
  assert data.padding == pytest.approx(1 - (6 + 5 + 2 + 6) / 24)


@PROPERTY
@given(LENGTHS, st.integers(3, 12), st.booleans(), st.integers(0, 9))
def test_words_count_the_starts_of_a_row(lengths, length, whole, seed):
  corpus = written(lengths, seed)
  first = np.append(0, corpus.ends[:-1])
  _, rows = rows_of(corpus, length, 'both', whole, words=True)
  begun = set()
  for n, (tokens, ids) in enumerate(zip(rows['tokens'], rows['segment_ids'], strict=True)):
    word, expected, before = 0, [], 0
    for t in range((ids > 0).sum()):
      token = tokens[t]
      new = ids[t] != before or token <= SEP or tokens[t - 1] == CLS
      word += bool(new or corpus.word_starts[first[token // 1000] + token % 1000 - 10])
      before = ids[t]
      expected.append(word)
      begun.add(word)
    np.testing.assert_array_equal(rows['words'][n, : len(expected)], expected)
  assert min(begun) == 1


def brute_force(lengths, room):
  """The fewest rows that hold all."""
  best = len(lengths)

  def place(i, left):
    nonlocal best
    if len(left) >= best:
      return
    if i == len(lengths):
      best = len(left)
      return
    for n in range(len(left)):
      if left[n] >= lengths[i]:
        place(i + 1, [*left[:n], left[n] - lengths[i], *left[n + 1 :]])
    place(i + 1, [*left, room - lengths[i]])

  place(0, [])
  return best


def one_by_one(lengths, room, choose):
  """Rows by the longest first, each into the row that `choose` takes of those that have room."""
  left = []
  for length in sorted(lengths, reverse=True):
    fits = [n for n, space in enumerate(left) if space >= length]
    if fits:
      left[choose(fits, key=lambda n: left[n])] -= length
    else:
      left.append(room - length)
  return len(left)


foremost = lambda fits, key: fits[0]
ITEMS = lambda room, most: st.lists(st.integers(1, room), min_size=1, max_size=most)


def check_fit(lengths, room):
  row, count = best_fit(np.array(lengths), room)
  assert sorted(set(row.tolist())) == list(range(count))
  assert (np.bincount(row, lengths) <= room).all()
  return count


@PROPERTY
@given(st.integers(1, 12).flatmap(lambda room: st.tuples(st.just(room), ITEMS(room, 7))))
def test_best_fit_of_few_is_near_the_best_there_is(case):
  room, lengths = case
  count, best = check_fit(lengths, room), brute_force(lengths, room)
  assert best <= count <= 11 / 9 * best + 6 / 9


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 60).flatmap(lambda room: st.tuples(st.just(room), ITEMS(room, 60))))
def test_best_fit_equals_the_slow_way_and_needs_no_more_than_first_fit(case):
  room, lengths = case
  count = check_fit(lengths, room)
  assert count == one_by_one(lengths, room, min)
  assert count <= one_by_one(lengths, room, foremost)


def test_best_fit_of_nothing():
  row, count = best_fit(np.zeros(0, np.int64), 5)
  assert (len(row), count) == (0, 0)


@pytest.mark.parametrize('words', [False, True])
@pytest.mark.parametrize('library', [np, jnp])
def test_rows_equal_gather(words, library):
  data, _ = rows_of(written([5, 9, 1, 30, 4, 4, 2]), 8, words=words)
  indices = data.indices(3)[0]
  rows = data.rows(indices, np.arange(4))
  arrays = jax.tree.map(library.asarray, data.resident())
  gather = data.gather if library is np else jax.jit(data.gather)
  got = gather(arrays, library.asarray(indices))
  assert set(rows) == set(data.abstract) == set(got)
  for name, spec in data.abstract.items():
    assert (rows[name].shape, rows[name].dtype) == (spec.shape, spec.dtype)
    assert got[name].dtype == spec.dtype
    np.testing.assert_array_equal(rows[name], got[name])


def test_a_large_corpus_stays_on_the_host(monkeypatch):
  data, rows = rows_of(written([5, 9, 1]), 8)
  monkeypatch.setattr(packing, 'RESIDENT_BYTES', 8 * 4 * 4 * data.size)
  assert data.resident() is not None
  monkeypatch.setattr(packing, 'RESIDENT_BYTES', 8 * 4 * 4 * data.size - 1)
  assert data.resident() is None
  np.testing.assert_array_equal(data.rows(np.array([0]), np.zeros(1))['tokens'], rows['tokens'][:1])


def test_a_row_is_a_function_of_its_index():
  lengths = np.random.default_rng(0).integers(1, 30, 200).tolist()
  data, whole = rows_of(written(lengths), 16)
  other, _ = rows_of(written(lengths), 16, seed=7)
  order = data.indices(5)[0]
  assert not np.array_equal(order, other.indices(5)[0])
  # Two processes read halves of a batch; another asks for it at another time.
  for chosen in (order, order[:2], order[2:], order[::-1]):
    for name, value in other.rows(chosen, np.arange(len(chosen)) + 99).items():
      np.testing.assert_array_equal(value, whole[name][chosen])
  places = np.concatenate([data.indices(s)[0] for s in range(data.size // 4)])
  assert len(set(places)) == len(places)


def test_evaluation_reads_rows_in_order():
  data, _ = rows_of(written([5] * 40), 8, train=False)
  np.testing.assert_array_equal(data.indices(1)[0], [4, 5, 6, 7])


@pytest.mark.parametrize('length', [0, 1, 2])
def test_a_row_without_room(length):
  with pytest.raises(InputError, match=f'length={length}: expected more than the special tokens'):
    rows_of(written([5]), length)
  assert rows_of(written([5]), 3)[0].size == 5


def test_no_token_at_all():
  with pytest.raises(InputError, match='not one token'):
    rows_of(written([5, 0, 0]).part(1, 3), 8)


# Corpora: what is packed.


def test_a_corpus_is_tokenised_once(monkeypatch):
  texts = [[('ab c', True)], [], [('d', False), ('', True), ('ef', True)]]
  monkeypatch.setattr(corpora, 'BATCH', 2)
  made = encode(texts, Letters())
  assert bytes(made.tokens.tolist()) == b'ab cdef'
  assert made.ends.tolist() == [4, 4, 7]
  assert made.loss_mask.tolist() == [1, 1, 1, 1, 0, 1, 1]
  assert made.word_starts.tolist() == [1, 0, 0, 1, 1, 1, 0]
  assert made.tokens.dtype == np.uint16
  monkeypatch.setattr(corpora, '_encode', lambda *_: pytest.fail('tokenised again'))
  for name, value in vars(encode(texts, Letters())).items():
    np.testing.assert_array_equal(value, vars(made)[name])


OTHERS = {
  'a learned part': [[('ab', True), ('c', True)]],
  'another cut': [[('a', False), ('bc', True)]],
  'two documents': [[('ab', False)], [('c', True)]],
  'a zero byte': [[('ab\0c', False)]],
}


@pytest.mark.parametrize('texts', OTHERS.values(), ids=OTHERS)
def test_other_texts_are_another_corpus(texts):
  first = encode([[('ab', False), ('c', True)]], Letters())
  other = encode(texts, Letters())
  values = lambda c: [x.tolist() for x in vars(c).values()]
  assert values(other) != values(first)
  assert values(other) == values(corpora._encode(texts, Letters()))


def test_tokenizers_without_a_file_are_told_apart():
  small = encode([[('ab', True)]], Bytes())
  large = encode([[('ab', True)]], Letters(size=1 << 17))
  assert (small.tokens.dtype, large.tokens.dtype) == (np.uint16, np.int32)


def test_of_two_who_write_the_same_the_first_stays(tmp_path):
  made = corpora._encode([[('ab', True)]], Letters())
  for _ in range(2):
    corpora._write(tmp_path / 'tokens' / 'name', made)
  assert [p.name for p in (tmp_path / 'tokens').iterdir()] == ['name']
  assert np.load(tmp_path / 'tokens' / 'name' / 'tokens.npy').tolist() == [97, 98]


def test_a_corpus_without_tokens():
  with pytest.raises(InputError, match='not one token'):
    encode([[('', True)]], Letters())


@PROPERTY
@given(LENGTHS, st.data())
def test_a_part_is_its_documents(lengths, draw):
  first = draw.draw(st.integers(0, len(lengths)))
  last = draw.draw(st.integers(first, len(lengths)))
  part = written(lengths).part(first, last)
  edges = np.append(0, part.ends)
  for n, d in enumerate(range(first, last)):
    expected = (1000 * d + np.arange(lengths[d]) + 10).tolist()
    assert part.tokens[edges[n] : edges[n + 1]].tolist() == expected
  sizes = {len(part.tokens), len(part.word_starts), len(part.loss_mask)}
  assert sizes == {sum(lengths[first:last])}


# From files.

SPECIAL = {
  'bytes': ({}, (), (), False),
  'BERT': ({'cls': 130, 'sep': 131, 'mask': 132, 'eos': 133}, (130,), (131,), True),
  'GPT': ({'eos': 133}, (), (133,), False),
  'Llama': ({'bos': 134, 'eos': 133}, (134,), (133,), False),
}


def write(path, lines):
  path.write_text('\n'.join(lines))
  return (str(path),)


@pytest.mark.parametrize(('special', 'prefix', 'suffix', 'whole'), SPECIAL.values(), ids=SPECIAL)
def test_special_tokens_frame_documents(tmp_path, special, prefix, suffix, whole):
  paths = write(tmp_path / 'a.txt', ['abcd', 'efghijk', 'l'])
  data = batched(packed, 2, 6, paths, 'all', unit='line', tokenizer=Letters(special))
  assert (data.prefix, data.suffix, data.whole) == (prefix, suffix, whole)
  rows = data.rows(np.arange(data.size), np.arange(data.size))
  found = sorted(bytes(i for i in s if i < 128).decode() for s in segments(rows))
  pieces = {'BERT': ['abcd', 'efgh', 'ijk', 'l'], 'Llama': ['abcd', 'efgh', 'ijk', 'l']}
  name = next(k for k, v in SPECIAL.items() if v[0] == special)
  cut = {'bytes': ['abcd', 'efghij', 'k', 'l'], 'GPT': ['abcd', 'efghi', 'jk', 'l']}
  assert found == (pieces | cut)[name]
  assert data.metadata['special'] == tuple(sorted(special.values()))
  assert data.metadata['mask'] == special.get('mask', -1)
  assert data.metadata['bytes'] == 12


def test_splits_are_of_documents(tmp_path):
  paths = write(tmp_path / 'a.txt', [chr(97 + i) * 3 for i in range(20)])
  held = {}
  for split in ('train', 'valid', 'all'):
    data = batched(packed, 2, 4, paths, split, unit='line', tokenizer=Letters())
    rows = data.rows(np.arange(data.size), np.arange(data.size))
    held[split] = {chr(i) for i in np.unique(rows['tokens']) if i}
    assert (
      f'{len(held[split])} documents of {3 * len(held[split])} tokens' in data.metadata['source']
    )
  assert [len(held[s]) for s in ('train', 'valid', 'all')] == [18, 2, 20]
  assert held['train'] | held['valid'] == held['all']
  assert held['valid'] == {'s', 't'}


def test_of_instructions_only_the_answer_is_learned(tmp_path):
  records = [{'ask': 'why?', 'answer': 'so.'}, {'ask': 'a', 'answer': 'bcdef'}]
  paths = write(tmp_path / 'a.jsonl', [json.dumps(r) for r in records])
  coder = Letters({'bos': 134, 'eos': 133})
  data = batched(packed, 1, 20, paths, 'all', 'answer', prompt='ask', tokenizer=coder)
  rows = data.rows(np.arange(data.size), np.arange(data.size))
  learned = ''
  for n in range(data.size):
    at = np.flatnonzero(rows['weights'][n])
    learned += ''.join('|' if i == 133 else chr(i) for i in rows['targets'][n, at])
  assert sorted(learned.split('|')) == ['', 'bcdef', 'so.']
  assert rows['weights'].sum() == len('so.|bcdef|')
  # 'b' is the first token of an answer: it is to be said after the whole of its prompt.
  (row,), (place,) = np.nonzero(rows['tokens'] == ord('a'))
  assert (rows['targets'][row, place], rows['weights'][row, place]) == (ord('b'), 1)
  assert data.metadata['bytes'] == len('so.bcdef')


def test_instructions_that_are_none(tmp_path):
  paths = write(tmp_path / 'a.jsonl', ['{"ask": "a", "answr": "b"}'])
  with pytest.raises(InputError, match="line 1: no text under 'answer'; did you mean 'answr'"):
    batched(packed, 1, 8, paths, 'all', 'answer', prompt='ask')
  with pytest.raises(InputError, match='instructions need paths'):
    batched(packed, 1, 8, prompt='ask')
  with pytest.raises(InputError, match='steps clean plain documents'):
    batched(packed, 1, 8, paths, prompt='ask', steps=(Unicode(),))
  plain = write(tmp_path / 'a.txt', ['a'])
  with pytest.raises(InputError, match='records are read from'):
    batched(packed, 1, 8, plain, prompt='ask')


def test_words_of_text(tmp_path):
  paths = write(tmp_path / 'a.txt', ['ab cd e'])
  data = batched(
    packed, 1, 12, paths, 'all', tokenizer=Letters({'cls': 130, 'sep': 131}), words=True
  )
  (words,) = data.rows(np.arange(1), np.arange(1))['words']
  #                        [CLS] a  b  _  c  d  _  e  [SEP]
  assert words[:9].tolist() == [1, 2, 2, 2, 3, 3, 3, 4, 5]


def test_the_tokenizer_stays_with_the_data(tmp_path):
  paths = write(tmp_path / 'a.txt', ['abc'])
  coder = Letters()
  assert batched(packed, 1, 4, paths, 'all', tokenizer=coder).tokenizer is coder
  assert batched(packed, 1, 4, paths, 'all').tokenizer == Bytes()
