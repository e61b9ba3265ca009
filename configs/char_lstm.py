"""An LSTM over bytes that carries its state from batch to batch.

    python -m bmx.main --config=configs/char_lstm.py                               # Python's source
    python -m bmx.main --config=configs/char_lstm.py --config.data.path=input.txt  # any text file
    python -m bmx.main --config=configs/char_lstm.py --config.task.model.cell=gru

Each row of a batch reads its own part of the text, window after window, and its state is part of
the run's (docs/recurrent.md). The windows of the evaluation are those of gpt_char, each from zeros.

Reaches a validation loss of 2.089 nats a character on tinyshakespeare, 1.892 in windows of 1,024
(--config.eval.valid.length=1024), in 134 CPU seconds (1 seed; 2026-11-28, two shared CPU cores:
experiments/recurrent/run.py).
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('byte-level LSTM')
  c.length = 64
  c.batch_size = 16
  c.steps = 1500  # as many tokens as gpt_char reads
  c.task = {
    'call': 'bmx.tasks.language:CausalLM',
    'model': {
      'call': 'bmx.models.recurrent_lm:RecurrentLM',
      'vocab_size': 256,
      'width': 256,
      'depth': 1,
      'cell': 'lstm',
      'carry': True,
      'tied': False,
      'dropout': 0.0,
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.text.windows:text',
    'path': '',
    'split': 'train',
    'length': c.get_ref('length'),
    'contiguous': True,
  }
  c.eval.valid = {'split': 'valid'}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 4e-3, 'warmup': 50, 'floor': 1e-4}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'b2': 0.99, 'weight_decay': 0.1, 'clip': 1.0}
  c.every = {'log': 100, 'eval': 500, 'save': 500}
  if check_variant(variant, 'tiny') == 'tiny':
    # Every layout on 8 devices divides it.
    c.length, c.batch_size, c.steps = 32, 16, 20
    c.task.model.update(depth=2, width=64)
    c.schedule.update(peak=1e-2, warmup=2)
    c.every = {'log': 5, 'eval': 0, 'save': 10}
    c.eval.valid.batch_size = 512
  else:
    c.hooks.samples = {
      'call': 'bmx.serve.hooks:SampleTexts',
      'every': 500,
      'prompts': ('\n',),
      'max_new_tokens': 200,
      'optional': True,
    }
  return c
