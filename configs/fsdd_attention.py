"""Sequences of 1 to 4 spoken digits, written by an attention decoder (encoder-decoder).

    python -m bmx.main --config=configs/fsdd_attention.py --config.data.path=recordings
    bmx train fsdd_attention:finetune --init.path=WHISPER --data.path=calls

`recordings` is the folder of the Free Spoken Digit Dataset
(https://github.com/Jakobovski/free-spoken-digit-dataset), or a .tar of it, composed into sequences
as in fsdd_ctc. `:finetune` trains a Whisper of a Hugging Face folder on a folder of recordings
with a table of transcripts. docs/speech.md.

Reaches, after 600 steps of a schedule of 600 (270 CPU seconds, one seed; 2026-11-28, with
--steps=600 --eval.test.count=300 --eval.left_out.count=300): word error rates of .53 (valid), .61
(test) and .55 (the speaker left out), and was still learning. Its 2,600 steps were not run;
fsdd_ctc learns the same much faster.
"""

from bmx.config import base, check_variant

WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


def get_config(variant: str = ''):
  check_variant(variant, 'finetune', 'tiny')
  c = base('sequences of spoken digits, by attention')
  c.batch_size = 32
  c.steps = 2600
  c.length = 8  # tokens of a transcript: four digits, one token each, and the end
  c.task = {
    'call': 'bmx.tasks.seq2seq:Seq2SeqLM',
    'smoothing': 0.1,
    'num_beams': 1,
    'max_new_tokens': c.get_ref('length'),
    'model': {
      'call': 'bmx.models.to_text:ToText',
      'vocab_size': 'auto',  # the ten words and the end
      'max_seq_len': c.get_ref('length'),
      'width': 96,
      'depth': 2,
      'heads': 4,
      'positions': 'learned',  # small at first: with sinusoids the decoder ignored the audio
      'dropout': 0.1,
      'dtype': c.get_ref('dtype'),
      'encoder': {
        'call': 'bmx.models.speech:SpeechEncoder',
        'width': 96,
        'depth': 3,
        'heads': 4,
        'kernel_size': 5,
        'strides': (2, 2),
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
    'length': c.get_ref('length'),
    'tokenizer': {'call': 'bmx.data.text.tokenizer_train:listed', 'words': WORDS},
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
  if variant == 'finetune':
    _finetune(c, metrics)
  if variant == 'tiny':
    c.steps, c.batch_size = 60, 16
    c.task.smoothing = 0.0
    c.task.model.update(width=32, depth=1, heads=2, dropout=0.0)
    c.task.model.encoder.update(width=32, depth=1, heads=2, dropout=0.0)
    c.data.update(source='tones', left_out='', words=(1, 2), seconds=0.8, mels=20)
    c.eval.valid.update(count=32, batch_size=32)
    del c.eval.test, c.eval.left_out
    c.schedule.update(peak=1e-2, warmup=5)
    c.every = {'log': 10, 'eval': 0, 'save': 60}
  return c


def _finetune(c, metrics):
  """Starts from a Whisper of Hugging Face; sizes and tokenizer come from there."""
  c.length, c.batch_size, c.epochs, c.steps = 128, 8, 3.0, 0
  own = {'path': c.init.get_ref('path')}
  c.task.smoothing = 0.0
  c.task.model = own | {'call': 'bmx.adapt.restore:model', 'dtype': c.get_ref('dtype')}
  c.data = {
    'call': 'bmx.data.audio.speech:speech',
    'path': '',
    'lower': False,  # Whisper writes as people do
    'rate': 16000,
    'mels': 80,  # 128 from large-v3 on
    'kind': 'whisper',
    'seconds': 30.0,
    'fill': True,
    'split': 'train',
    'holdout': 0.1,
    'length': c.get_ref('length'),
    'begin': (),  # as the tokenizer of the folder begins a text
    'tokenizer': own | {'call': 'bmx.data.text.tokenizer:load'},
  }
  c.eval = {'valid': {'split': 'valid', 'metrics': metrics}}
  c.schedule.update(peak=1e-5, warmup=50)
  c.every = {'log': -50, 'eval': -5, 'save': -5}  # 50 and 5 times a run
