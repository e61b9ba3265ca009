"""Census Income (UCI Adult): does a person earn more than 50,000 dollars a year?

    python -m bmx.main --config=configs/adult_mlp.py --config.folder=DIR

DIR holds adult.data and adult.test, as UCI distributes them (Kohavi 1996, CC BY 4.0).

Reaches 85.8 % accuracy on adult.test (mean of 3 seeds, spread 0.1 points) and an AUC of 0.910
(2026-11-24, two CPU cores: experiments/recipes/run.py adult_mlp).
"""

from bmx.config import base, check_variant

COLUMNS = (
  'age', 'workclass', 'fnlwgt', 'education', 'education_num', 'marital_status', 'occupation',
  'relationship', 'race', 'sex', 'capital_gain', 'capital_loss', 'hours_per_week', 'native_country',
  'income',
)  # fmt: skip


def get_config(variant: str = ''):
  c = base('perceptron on Census Income')
  c.folder = 'adult'
  c.batch_size = 128
  c.epochs = 20.0
  c.task = {
    'call': 'bmx.tasks.classification:BinaryClassification',
    'model': {
      'call': 'bmx.models.mlp:MLP',
      'num_outputs': 1,
      'widths': (10, 10),
      'activations': ('sigmoid', 'relu'),
      'dropout': 0.0,
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.tables:table',
    'path': c.get_ref('folder') + '/adult.data',
    'columns': COLUMNS,
    'target': 'income',
    'strip': '.',  # adult.test ends its classes with one
  }
  c.eval.test = {
    'path': c.get_ref('folder') + '/adult.test',
    'batch_size': 4096,
    'metrics': ('bmx.tasks.classification:auc',),
  }
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 5e-3, 'warmup': 100}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 1e-4}
  c.every = {'log': 500, 'eval': 2000, 'save': 2000}
  if check_variant(variant, 'tiny') == 'tiny':
    c.epochs, c.steps, c.batch_size = 0.0, 30, 64
    c.data = {'call': 'bmx.data.builtin:table', 'name': 'breast_cancer', 'split': 'train'}
    c.eval.test = {'split': 'test', 'metrics': ('bmx.tasks.classification:auc',)}
    c.schedule.warmup = 2
    c.every = {'log': 10, 'eval': 0, 'save': 10}
  return c
