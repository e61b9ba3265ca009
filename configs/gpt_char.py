"""A GPT over bytes, in the size that nanoGPT trains on a laptop.

    python -m bmx.main --config=configs/gpt_char.py                                # Python's source
    python -m bmx.main --config=configs/gpt_char.py --config.data.path=input.txt   # any text file
    python -m bmx.main --config=configs/gpt_char.py:lora --config.init.path=RUN
    --config.data.path=my.txt

`:lora` trains adapters of a run of this recipe on another text (docs/adapt.md).

Reaches a validation loss of 1.758 nats a character on tinyshakespeare (mean of 3 seeds, 1.752 to
1.765; 2026-11-24, two CPU cores: experiments/recipes/run.py gpt_char), in about 100 s.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('byte-level GPT')
  c.length = 64
  c.batch_size = 12
  c.steps = 2000
  c.task = {
    'call': 'bmx.tasks.language:CausalLM',
    'model': {
      'call': 'bmx.models.gpt:GPT',
      'vocab_size': 256,
      'max_seq_len': c.get_ref('length'),
      'width': 128,
      'depth': 4,
      'heads': 4,
      'kv_heads': 0,
      'mlp_dim': 0,
      'positions': 'learned',
      'norm': 'layer',
      'activation': 'gelu',
      'gated': False,
      'bias': False,
      'tied': True,
      'dropout': 0.0,  # nanoGPT's choice for a model this small
      'scan': False,
      'remat': 'none',
      'attention': 'auto',  # by the kind of device
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.text.windows:text',
    'path': '',
    'split': 'train',
    'length': c.get_ref('length'),
  }
  c.eval.valid = {'split': 'valid'}
  c.schedule = {
    'call': 'bmx.optim.schedules:cosine',
    'peak': 4e-3,  # 1e-3 ends at 1.89, 2e-3 at 1.82
    'warmup': 100,
    'floor': 1e-4,
  }
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'b2': 0.99, 'weight_decay': 0.1, 'clip': 1.0}
  c.every = {'log': 100, 'eval': 500, 'save': 500}
  if check_variant(variant, 'lora', 'tiny', 'tiny_lora').startswith('tiny'):
    # Every layout on 8 devices divides it.
    c.length, c.batch_size, c.steps = 32, 16, 20
    c.task.model.update(depth=2, width=64, scan=True, attention='auto')
    c.schedule.update(peak=3e-3, warmup=2)
    c.every = {'log': 5, 'eval': 0, 'save': 10}
    c.eval.valid.batch_size = 512
  else:
    c.hooks.samples = {
      'call': 'bmx.serve.hooks:SampleTexts',
      'every': 500,
      'prompts': ('\n',),
      'max_new_tokens': 60,  # the context is 64
      'optional': True,
    }
  if variant.endswith('lora'):
    _adapted(c)
  if variant == 'tiny_lora':
    c.task.train, c.schedule.peak = 'embed|position', 1e-2  # the base is not trained there
  return c


def _adapted(c):
  """Freezes all but adapters."""
  c.task = {
    'call': 'bmx.adapt.lora:LoRA',
    'inner': c.task,
    'rank': 8,
    'alpha': 16.0,
    'targets': 'attention/|feed_forward/',
    'train': '',
    'base': 'float32',  # int8 or nf4 keep the frozen kernels in a quarter or an eighth of the bytes
  }
  c.init.adapter = ''  # a run of adapters of the same base
  c.schedule.peak = 1e-3
