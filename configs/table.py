"""A table of one's own: classes or numbers from the columns of a CSV, Parquet or JSON lines file.

    bmx train table --data.path=my.csv --data.target=churned
    python -m bmx.main --config=configs/table.py --config.data.path=FILE --config.data.target=COLUMN

How each column is read, the kind of the target and the sizes are inferred, printed and kept in the
run (docs/tables.md). A fifth of the records is held out; the checkpoint that is best on it is kept.

Reaches 85.5 % of the held-out fifth of Census Income's adult.data, in 9 s (mean of 3 seeds, 85.4 to
85.6; 2026-11-27, two CPU cores: experiments/recipes/run.py table).
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('perceptron on a table')
  c.batch_size = 128
  c.epochs = 30.0
  c.task = {
    'call': 'bmx.tasks.tabular:tabular',
    'model': {
      'call': 'bmx.models.mlp:MLP',
      'num_outputs': 'auto',  # the classes of the target, or 1 for a number
      'widths': (128, 128),
      'activations': ('relu',),
      'dropout': 0.1,
      'norm': '',
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.tables:table',
    'path': '',
    'target': '',
    'kind': 'auto',
    'split': 'train',
    'holdout': 0.2,
  }
  c.eval.valid = {'split': 'valid', 'batch_size': 1024}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 1e-3, 'warmup': 0, 'floor': 0.0}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.01, 'clip': 1.0}
  c.every = {'log': -20, 'eval': -10, 'save': 1000}  # 20 and 10 times, however small the table
  c.keep = {'last': 1, 'metric': 'eval/valid/loss', 'mode': 'min'}
  if check_variant(variant, 'tiny') == 'tiny':
    c.epochs, c.steps, c.batch_size = 0.0, 30, 64
    c.data = {'call': 'bmx.data.builtin:table', 'name': 'breast_cancer', 'split': 'train'}
    c.eval.valid = {'split': 'test'}
    c.every = {'log': 10, 'eval': 0, 'save': 10}
  return c
