"""Single spoken digits, classified by a convolutional network on log-mel features.

    python -m bmx.main --config=configs/fsdd_cnn.py --config.data.path=recordings

`recordings` is the folder of the Free Spoken Digit Dataset
(https://github.com/Jakobovski/free-spoken-digit-dataset), or a .tar of it; `left_out` is a speaker
whose recordings are in no training batch. docs/speech.md.

Reaches: not measured.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('convolutional network on spoken digits')
  c.batch_size = 64
  c.epochs = 15.0
  c.task = {
    'call': 'bmx.tasks.classification:Classification',
    'model': {
      'call': 'bmx.models.cnn:CNN',
      'num_outputs': 'auto',  # the ten digits
      'features': (16, 32, 64),
      'kernel_size': 3,
      'widths': (128,),
      'norm': 'batch',
      'dropout': 0.3,
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.audio.digits:digits',
    'source': 'fsdd',
    'path': '',
    'split': 'train',
    'left_out': 'yweweler',  # the last one by name
    'seconds': 1.0,
    'augment': {'call': 'bmx.data.audio.augment:SpeechAugment'},
  }
  c.eval.valid = {'split': 'valid', 'batch_size': 125}
  c.eval.test = {'split': 'test', 'batch_size': 125}
  c.eval.left_out = {'split': 'left_out', 'batch_size': 125}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 2e-3, 'warmup': 50}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.05}
  c.every = {'log': 25, 'eval': -5, 'save': -5}  # 5 times a run
  c.keep = {'last': 1, 'metric': 'eval/valid/loss', 'mode': 'min'}
  if check_variant(variant, 'tiny') == 'tiny':
    c.epochs, c.steps, c.batch_size = 0.0, 30, 16
    c.task.model.update(features=(8,), widths=(16,))
    c.data.update(source='tones', left_out='', seconds=0.25, mels=20)
    c.eval.valid.update(batch_size=40)
    del c.eval.test, c.eval.left_out
    c.schedule.update(peak=5e-3, warmup=2)
    c.every = {'log': 5, 'eval': 0, 'save': 30}
  return c
