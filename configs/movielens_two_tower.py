"""Items for users with two towers, on the ratings of MovieLens or of one's own.

    bmx train movielens_two_tower --data.path=movies.zip --workdir=runs/movies
    python -m bmx.main --config=configs/movielens_two_tower.py --config.data.path=movies.zip

The last rating of each user is the test set, the one before it the validation set, whose recall
chooses the checkpoint. `bmx predict RUN --input=users.csv` writes the ten best items of each user
(docs/recommendation.md).

Reaches recall@10 of .115 on the last liked films of ml-latest-small's 608 users (5 seeds, standard
error .001), 2.7 times that of the most popular films, .043 (2026-11-28, two shared CPU cores:
experiments/recsys/run.py).
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('two towers on ratings')
  c.batch_size = 1024
  c.epochs = 8.0
  c.task = {
    'call': 'bmx.tasks.retrieval:Retrieval',
    'temperature': 1.0,
    'correction': True,
    'l2': 0.03,
    'top': 10,
    'exclude_seen': True,
    'model': {
      'call': 'bmx.models.towers:TwoTowers',
      'num_users': 'auto',
      'num_items': 'auto',
      'history': 'auto',
      'user_features': 'auto',
      'item_features': 'auto',
      'width': 32,
      'widths': (),
      'dropout': 0.0,
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.recommend.ratings:ratings',
    'path': '',
    'items': 'movies.csv',
    'item_features': ('genres',),
    'min_rating': 4.0,  # what a user liked; lower ratings are only seen
    'history': 10,
    'split': 'train',
  }
  names = 'recall_at_10', 'ndcg_at_10', 'popularity_recall_at_10', 'popularity_ndcg_at_10'
  metrics = tuple(f'bmx.tasks.retrieval:{name}' for name in names)
  c.eval.valid = {'split': 'valid', 'batch_size': 256, 'metrics': metrics}
  c.eval.test = {'split': 'test', 'batch_size': 256, 'metrics': metrics}
  c.schedule = {'call': 'bmx.optim.schedules:constant', 'peak': 1e-2}
  c.optimizer = {
    'call': 'bmx.optim.tables:with_tables',
    'tables': '(^|/)table$',
    'inner': {'call': 'bmx.optim.optimizers:adam'},
    'rows': {'call': 'bmx.optim.tables:lazy_adam'},
  }
  c.every = {'log': -8, 'eval': -8, 'save': 10_000}
  c.keep = {'last': 1, 'metric': 'eval/valid/recall_at_10', 'mode': 'max'}
  if check_variant(variant, 'tiny') == 'tiny':
    c.epochs, c.steps, c.batch_size = 0.0, 60, 128
    c.task.model.width = 8
    c.schedule.peak = 0.03
    c.data = {'call': 'bmx.data.recommend.synthetic:ratings', 'split': 'train'}
    c.eval.valid.batch_size = c.eval.test.batch_size = 64
    c.every = {'log': 10, 'eval': 0, 'save': 30}
  return c
