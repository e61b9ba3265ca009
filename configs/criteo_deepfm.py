"""Click-through rates on Criteo's logs with DeepFM; `:wide_deep` and `:dcn` are other models.

    bmx train criteo_deepfm --data.path=train.txt --workdir=runs/criteo
    python -m bmx.main --config=configs/criteo_deepfm.py --config.data.path=train.txt

The last tenth of the file is held out; the checkpoint with the least log loss on it is kept. Any
other table of clicks: `--data.call=bmx.data.recommend.clicks:clicks --data.target=COLUMN`
(docs/recommendation.md).

Reaches no published figure yet: it has not been trained at full size, and the sample of 200 lines
is a smoke test.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('DeepFM on click logs')
  c.batch_size = 4096
  c.epochs = 1.0  # click models overfit in the second one (Zhang et al. 2022)
  c.task = {
    'call': 'bmx.tasks.ctr:ClickThrough',
    'model': {
      'call': 'bmx.models.recsys:DeepFM',
      'field_sizes': 'auto',
      'num_numeric': 'auto',
      'width': 16,
      'widths': (400, 400, 400),
      'dropout': 0.0,
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.recommend.clicks:criteo',
    'path': '',
    'min_count': 10,
    'split': 'train',
    'holdout': 0.1,
  }
  metrics = ('auc', 'log_loss', 'calibration')
  where = {'auc': 'classification'}
  paths = tuple(f'bmx.tasks.{where.get(name, "ctr")}:{name}' for name in metrics)
  c.eval.valid = {'split': 'valid', 'batch_size': 4096, 'metrics': paths}
  c.schedule = {'call': 'bmx.optim.schedules:constant', 'peak': 1e-3}
  c.optimizer = {
    'call': 'bmx.optim.tables:with_tables',
    'tables': '(^|/)table$',
    'inner': {'call': 'bmx.optim.optimizers:adam', 'clip': 1.0},
    'rows': {'call': 'bmx.optim.tables:lazy_adam'},
  }
  c.every = {'log': 100, 'eval': -10, 'save': 10_000}
  c.keep = {'last': 1, 'metric': 'eval/valid/log_loss', 'mode': 'min'}
  check_variant(variant, 'wide_deep', 'dcn', 'tiny')
  if variant == 'wide_deep':
    c.task.model.call = 'bmx.models.recsys:WideDeep'
  if variant == 'dcn':
    c.task.model.call = 'bmx.models.recsys:DCN'
    c.task.model.update(crosses=3, rank=64, structure='stacked')
  if variant == 'tiny':
    c.epochs, c.steps, c.batch_size = 0.0, 60, 128
    c.task.model.update(width=8, widths=(32,))
    c.data = {'call': 'bmx.data.recommend.synthetic:clicks', 'split': 'train', 'holdout': 0.2}
    c.eval.valid.update(split='valid', batch_size=400)
    c.schedule.peak = 0.01
    c.every = {'log': 10, 'eval': 0, 'save': 30}
  return c
