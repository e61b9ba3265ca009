"""Ratings: splits by time, what a user has seen, files, and what is wrong with them."""

import json
import logging
import math
import zipfile

import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.data.recommend.catalog import Histories
from bmx.data.recommend.ratings import ratings

HEADER = 'userId,movieId,rating,timestamp'
# User 1 has 5 ratings in another order than that of time, 20 has 3, and 3 has too few.
ROWS = [(1, 10, 4, 50), (1, 30, 2, 10), (20, 10, 5, 1), (1, 20, 3, 20), (20, 20, 4, 2),
        (1, 40, 5, 30), (1, 50, 1, 40), (20, 60, 3, 3), (3, 10, 4, 9), (3, 20, 4, 8)]  # fmt: skip
MOVIES = ['movieId,title,genres', '10,"Ten, The",Comedy|Drama', '20,Twenty,Drama', '30,Thirty,',
          '40,Forty,Comedy', '50,Fifty,War', '60,Sixty,War']  # fmt: skip
# Of each user in the order of time.
ORDER = {'1': [30, 20, 40, 50, 10], '3': [20, 10], '20': [10, 20, 60]}


@pytest.fixture
def folder(tmp_path):
  lines = [','.join(map(str, row)) for row in ROWS]
  (tmp_path / 'ratings.csv').write_text('\n'.join([HEADER, *lines]))
  (tmp_path / 'movies.csv').write_text('\n'.join(MOVIES))
  return tmp_path


def splits(path, **words):
  train = ratings(str(path), split='train', **words)
  state = json.loads(json.dumps(train.state()))
  other = {s: ratings(str(path), split=s, fitted=state, train=False, **words)
           for s in ('valid', 'test')}  # fmt: skip
  return {'train': train, **other}


def pairs(data):
  items = [data.catalog.items[i] if i >= 0 else None for i in data.arrays['item']]
  return list(zip(data.asked, items, strict=True))


def test_the_last_ratings_of_each_user_are_held_out(folder):
  found = splits(folder)
  cut = {'train': slice(0, -2), 'valid': slice(-2, -1), 'test': slice(-1, None)}
  for split, part in cut.items():
    expected = [(u, str(i)) for u, items in ORDER.items() for i in items[part] if u != '3']
    if split == 'train':
      expected += [('3', '20'), ('3', '10')]
    held_out = split != 'train'
    texts = list(zip(found[split].asked, found[split].held_out, strict=True)) if held_out else []
    assert sorted(texts or pairs(found[split])) == sorted(expected)
  # The training part: 30 20 40 of user 1, 20 10 of user 3, 10 of user 20; 50 and 60 are new.
  train = found['train']
  assert train.catalog.items == ('10', '20', '30', '40')
  assert train.catalog.users == ('1', '3', '20')
  assert train.catalog.counts == (2, 2, 1, 1)
  share = {'10': 2 / 6, '20': 2 / 6, '30': 1 / 6, '40': 1 / 6}
  expected = [math.log(share[item]) for _, item in pairs(train)]
  np.testing.assert_allclose(train.arrays['log_q'], expected, rtol=1e-6)
  assert set(train.spec) == {'user', 'item', 'log_q', 'weights'}


def test_what_a_user_has_seen(folder):
  found = splits(folder)
  items = found['train'].catalog.items
  for split, behind in (('valid', 2), ('test', 1)):
    data = found[split]
    assert data.spec['seen'].shape == (4,)
    rows = data.rows(np.arange(data.size), np.arange(data.size))
    for user, seen in zip(data.asked, rows['seen'], strict=True):
      expected = [str(i) for i in ORDER[user][:-behind] if str(i) in items]
      assert [items[i] for i in seen if i >= 0] == expected
  # An item without a training rating is a miss, not an error.
  assert dict(pairs(found['valid'])) == {'1': None, '20': '20'}


def test_the_items_rated_last(folder):
  found = splits(folder, history=2)
  items = found['train'].catalog.items
  for data in found.values():
    for user, item, past in zip(data.asked, pairs(data), data.arrays['history'], strict=True):
      wanted = item[1] if data is found['train'] else None
      order = [str(i) for i in ORDER[user]]
      end = order.index(wanted) if wanted else len(order) - (2 if data is found['valid'] else 1)
      expected = [i for i in order[:end] if i in items][::-1][:2]
      assert [items[i] for i in past if i >= 0] == expected


def test_users_who_ask(folder, tmp_path, caplog):
  state = json.loads(json.dumps(splits(folder)['train'].state()))
  (tmp_path / 'ask.csv').write_text('userId\n20\nnew\n1\n20\n')
  with caplog.at_level(logging.WARNING, 'bmx'):
    data = ratings(str(tmp_path / 'ask.csv'), fitted=state, train=False)
  assert '1 of 3 users have no training rating and get the most popular items: new' in caplog.text
  assert list(data.asked) == ['20', 'new', '1']
  assert data.arrays['user'].tolist() == [2, -1, 0]
  seen = data.rows(np.arange(3), np.arange(3))['seen']
  own = [[data.catalog.items[i] for i in row if i >= 0] for row in seen]
  assert own == [['10', '20'], [], ['30', '20', '40', '10']]  # of the whole training file
  prediction = {'prediction': np.array([[2, 3], [0, 0], [-1, -1]]), 'score': np.ones((3, 2))}
  shown = data.present(prediction)
  assert shown[0] == {'row': 1, 'user': '20', 'items': [{'item': '30', 'score': 1.0},
                                                        {'item': '40', 'score': 1.0}]}  # fmt: skip
  assert shown[1] == {'row': 2, 'user': 'new', 'fallback': 'popular',
                      'items': [{'item': '10'}, {'item': '20'}]}  # fmt: skip
  assert shown[2]['items'] == []


def test_titles_and_features(folder):
  data = ratings(str(folder), items='movies.csv', item_features=('genres',), split='train')
  assert data.catalog.titles == ('Ten, The', 'Twenty', 'Thirty', 'Forty')
  assert data.catalog.item_names == ('genres=Comedy', 'genres=Drama')
  assert data.metadata['item_features'] == (2, 2)
  assert data.metadata['item_feature_ids'] == ((0, 1), (1,), (), (0,))
  assert data.metadata['user_features'] == (0, 0)


def test_folder_archive_file_and_memory_are_one(folder, tmp_path):
  with zipfile.ZipFile(tmp_path / 'all.zip', 'w') as archive:
    for name in ('ratings.csv', 'movies.csv'):
      archive.write(folder / name, f'ml/{name}')
  columns = [list(column) for column in zip(*ROWS, strict=True)]
  frame = dict(zip(HEADER.split(','), columns, strict=True))
  found = [ratings(str(folder)), ratings(str(tmp_path / 'all.zip')),
           ratings(str(folder / 'ratings.csv')), ratings(given=frame)]  # fmt: skip
  assert len({data.digest() for data in found}) == 1
  titled = ratings(str(tmp_path / 'all.zip'), items='movies.csv').catalog
  assert titled == ratings(str(folder / 'ratings.csv'), items='movies.csv').catalog


def test_other_delimiters(folder):
  text = (folder / 'ratings.csv').read_text().replace(',', ';')
  (folder / 'other.csv').write_text(text)
  with pytest.raises(InputError, match="set --data.delimiter=';'"):
    ratings(str(folder / 'other.csv'))
  own = ratings(str(folder / 'ratings.csv'))
  assert ratings(str(folder / 'other.csv'), delimiter=';').digest() == own.digest()


def test_the_last_of_several_ratings_of_an_item_counts():
  given = {'user': ['a'] * 4, 'item': ['x', 'y', 'x', 'z'], 'when': ['2024-01-01', '2024-01-02',
           '2024-01-03', '2024-01-04']}  # fmt: skip
  words = {'user': 'user', 'item': 'item', 'time': 'when', 'rating': ''}
  assert pairs(ratings(given=given, **words)) == [('a', 'y'), ('a', 'x'), ('a', 'z')]
  low = {'user': ['a'] * 3, 'item': ['x', 'y', 'z'], 'stars': [1, 5, 4]}
  words = {'user': 'user', 'item': 'item', 'time': '', 'rating': 'stars', 'min_rating': 4.0}
  assert pairs(ratings(given=low, **words)) == [('a', 'y'), ('a', 'z')]


def test_low_ratings_are_seen_and_not_proposed(folder):
  found = splits(folder, min_rating=3.0, history=9)
  # User 1 liked 20, 40, 10 in this order, and rated 30 and 50 low; user 20 liked all three.
  train, test = found['train'], found['test']
  assert sorted(pairs(train)) == [('1', '20'), ('20', '10'), ('3', '10'), ('3', '20')]
  assert train.catalog.items == ('10', '20')
  assert dict(zip(test.asked, test.held_out, strict=True)) == {'1': '10', '20': '60'}
  state = ratings(str(folder), split='all', min_rating=4.0, history=9).state()
  asked = ratings(given={'userId': [1]}, fitted=state, train=False, history=9)
  names = lambda row: [asked.catalog.items[i] for i in row if i >= 0]
  assert names(asked.seen(np.array([0]))[0]) == ['20', '40', '10']  # 30, 50 are of no one's liking
  assert names(asked.arrays['history'][0]) == ['10', '40']


def test_histories_survive_json():
  random = np.random.default_rng(0)
  user = np.sort(random.integers(0, 9, 50))
  histories = Histories.of(user, random.integers(0, 30, 50), 11)
  again = Histories.restore(json.loads(json.dumps(histories.state())), 11, 30)
  np.testing.assert_array_equal(again.items, histories.items)
  np.testing.assert_array_equal(again.starts, histories.starts)
  for broken in ({'ratings': 49}, {'items': 'AAAA'}, {'counts': 3}):
    with pytest.raises(InputError, match='the histories of users'):
      Histories.restore(histories.state() | broken, 11, 30)
  with pytest.raises(InputError, match='are not those of its users and items'):
    Histories.restore(histories.state(), 11, 5)


def changed(row, column, value):
  rows = [list(r) for r in ROWS]
  rows[row][column] = value
  return '\n'.join([HEADER, *(','.join(map(str, r)) for r in rows)])


WHOLE = changed(0, 0, 1)


@pytest.mark.parametrize(('text', 'words', 'message'), [
  (changed(2, 0, ''), {}, 'record 3: userId is missing: expected an id'),
  (changed(2, 1, ''), {}, 'record 3: movieId is missing'),
  (changed(2, 2, 'good'), {}, "record 3: rating is 'good': expected a finite number; .*rating=''"),
  (changed(2, 2, 'nan'), {}, "record 3: rating is 'nan'"),
  (changed(2, 3, 'noon'), {}, "record 3: timestamp is 'noon': expected a number or an ISO date"),
  (WHOLE, {'user': 'userid'}, "data.user='userid': expected.*did you mean 'userId'"),
  (WHOLE, {'time': 'when'}, "data.time='when': expected a column.*data.time='' for none"),
  (WHOLE, {'min_rating': 9.0}, 'expected a rating of at least min_rating=9'),
  (WHOLE, {'split': 'vaild'}, "data.split='vaild': expected one of all, train"),
  (WHOLE, {'items': 'movie.csv'}, "data.items='movie.csv': .* no such file.*'movies.csv'"),
  (WHOLE, {'item_features': ('genres',)}, 'data.item_features=.*expected a file of them'),
  (WHOLE, {'items': 'movies.csv', 'item_features': ('genre',)},
   "data.item_features='genre': expected a column.*did you mean 'genres'"),
  (WHOLE, {'rating': '', 'min_rating': 3.0}, 'min_rating=3.0: expected a column.*min_rating=0'),
  ('\n'.join([HEADER, '1,10,4,1']), {'split': 'valid'}, 'expected a user with at least 3 ratings'),
  (HEADER, {}, 'has a header and no records'),
])  # fmt: skip
def test_mistakes_are_named(folder, text, words, message):
  (folder / 'ratings.csv').write_text(text)
  with pytest.raises(InputError, match=message):
    ratings(str(folder), **words)


def test_files_that_are_not_there(folder, tmp_path):
  with pytest.raises(InputError, match='data.path: expected a folder or a .zip of MovieLens'):
    ratings()
  with pytest.raises(InputError, match='no file .*nothing.zip'):
    ratings(str(tmp_path / 'nothing.zip'))
  (tmp_path / 'broken.zip').write_bytes(b'PK\x03\x04 not an archive')
  with pytest.raises(InputError, match='is not a .zip archive that can be read'):
    ratings(str(tmp_path / 'broken.zip'))
  with zipfile.ZipFile(tmp_path / 'other.zip', 'w') as archive:
    archive.writestr('a/links.csv', 'x')
  with pytest.raises(InputError, match="data.ratings='ratings.csv': expected one .*a/links.csv"):
    ratings(str(tmp_path / 'other.zip'))
  (folder / 'movies.csv').write_text('\n'.join([*MOVIES, '10,again,']))
  with pytest.raises(InputError, match='record 7: movieId 10 stands twice'):
    ratings(str(folder), items='movies.csv')


def test_movielens(data_dir):
  path = str(data_dir / 'movielens/ml-latest-small.zip')
  train = ratings(path, items='movies.csv', split='train')
  valid = ratings(path, items='movies.csv', split='valid', fitted=train.state(), train=False)
  # README.txt of the set: 100,836 ratings of 9,742 movies (18 without one) by 610 users.
  assert train.size + 2 * valid.size == 100_836
  assert valid.size == len(train.catalog.users) == 610
  assert len(train.catalog.items) <= 9724
  assert 'Toy Story (1995)' in train.catalog.titles
