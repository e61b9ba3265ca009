"""Speech of one's own: a folder of WAV or FLAC files with a table of transcripts.

    bmx train speech --data.path=calls
    python -m bmx.main --config=configs/speech.py --config.data.path=calls

calls/transcripts.csv has the columns file and text; docs/speech.md. A tenth of the recordings is
held out; the checkpoint with the lowest word error rate on it is kept.

Reaches: depends on the recordings.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('speech recognition with CTC')
  c.batch_size = 16
  c.epochs = 50.0
  c.task = {
    'call': 'bmx.tasks.speech:CTC',
    'model': {
      'call': 'bmx.models.speech:Recognizer',
      'num_outputs': 'auto',  # the characters of the transcripts and the blank
      'encoder': {
        'call': 'bmx.models.speech:SpeechEncoder',
        'width': 256,
        'depth': 6,
        'heads': 4,
        'strides': (2, 2),  # 40 ms: fast speech has 20 characters a second
        'positions': 'rotary',
        'attention': 'auto',
        'dtype': c.get_ref('dtype'),
      },
    },
  }
  c.data = {
    'call': 'bmx.data.audio.speech:speech',
    'path': '',
    'units': 'characters',
    'split': 'train',
    'holdout': 0.1,
    'augment': {'call': 'bmx.data.audio.augment:SpeechAugment'},
  }
  metrics = ('bmx.tasks.transcripts:wer', 'bmx.tasks.transcripts:cer')
  c.eval.valid = {'split': 'valid', 'metrics': metrics}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 1e-3, 'warmup': 500}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.05, 'clip': 1.0}
  c.every = {'log': -50, 'eval': -10, 'save': -10}  # 50 and 10 times a run
  c.keep = {'last': 1, 'metric': 'eval/valid/wer', 'mode': 'min'}
  if check_variant(variant, 'tiny') == 'tiny':
    c.epochs, c.steps, c.batch_size = 0.0, 60, 16
    c.task.model.encoder.update(width=32, depth=1, heads=2)
    c.data = {
      'call': 'bmx.data.audio.digits:sequences',
      'source': 'tones',  # touch tones, without files
      'split': 'train',
      'words': (1, 2),
      'seconds': 0.8,
      'mels': 20,
    }
    c.eval.valid = {'split': 'valid', 'count': 32, 'batch_size': 32, 'metrics': metrics}
    c.schedule.update(peak=3e-3, warmup=5)
    c.every = {'log': 10, 'eval': 0, 'save': 60}
  return c
