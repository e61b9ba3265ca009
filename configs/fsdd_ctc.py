"""Sequences of 1 to 4 spoken digits, recognized by a transformer encoder with CTC.

    python -m bmx.main --config=configs/fsdd_ctc.py --config.data.path=recordings

`recordings` is the folder of the Free Spoken Digit Dataset
(https://github.com/Jakobovski/free-spoken-digit-dataset), or a .tar of it. Sequences are composed
of recordings of one speaker; those of `left_out` are in no training sequence. docs/speech.md.

Reaches, after 1,950 of its 2,600 steps in 1,031 CPU seconds (one seed; 2026-11-28, the run was not
finished; experiments/speech/run.py ctc): a word error rate of .0226 on the speakers of the training
sequences, .0903 on the one left out.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('sequences of spoken digits')
  c.batch_size = 32
  c.steps = 2600
  c.task = {
    'call': 'bmx.tasks.speech:CTC',
    'model': {
      'call': 'bmx.models.speech:Recognizer',
      'num_outputs': 'auto',  # the ten words and the blank
      'encoder': {
        'call': 'bmx.models.speech:SpeechEncoder',
        'width': 96,
        'depth': 4,
        'heads': 4,
        'kernel_size': 5,
        'strides': (2, 2),  # 40 ms: the shortest digit, of 140 ms, has 4 outputs
        'positions': 'rotary',
        'dropout': 0.1,
        'dtype': c.get_ref('dtype'),
      },
    },
  }
  c.data = {
    'call': 'bmx.data.audio.digits:sequences',
    'source': 'fsdd',
    'path': '',
    'split': 'train',
    'left_out': 'yweweler',  # the last one by name
    'words': (1, 4),
    'augment': {
      'call': 'bmx.data.audio.augment:SpeechAugment',
      'band_masks': 1,
      'frame_width': 8,  # half of the shortest digit: a longer mask would hide a word
    },
  }
  metrics = ('bmx.tasks.transcripts:wer', 'bmx.tasks.transcripts:cer')
  c.eval.valid = {'split': 'valid', 'count': 200, 'batch_size': 100, 'metrics': metrics}
  c.eval.test = {'split': 'test', 'count': 1000, 'batch_size': 100, 'metrics': metrics}
  c.eval.left_out = {'split': 'left_out', 'count': 1000, 'batch_size': 100, 'metrics': metrics}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 2e-3, 'warmup': 100}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'weight_decay': 0.05, 'clip': 1.0}
  c.every = {'log': 50, 'eval': 650, 'save': 650}
  c.keep = {'last': 1, 'metric': 'eval/valid/wer', 'mode': 'min'}
  if check_variant(variant, 'tiny') == 'tiny':
    c.steps, c.batch_size = 60, 16
    c.task.model.encoder.update(width=32, depth=1, heads=2)
    c.data.update(source='tones', left_out='', words=(1, 2), seconds=0.8, mels=20)
    c.eval.valid.update(count=32, batch_size=32)
    del c.eval.test, c.eval.left_out
    c.schedule.update(peak=1e-2, warmup=5)
    c.every = {'log': 10, 'eval': 0, 'save': 60}
  return c
