"""GPT-2 small: 124,439,808 parameters (Radford et al. 2019).

    python -m bmx.main --config=configs/gpt2_124m.py --config.data.path=train.bin

train.bin holds uint16 token ids of GPT-2's tokenizer, one after another, as nanoGPT writes them.

Reaches 361,000 tokens a second on one H200 with `remat` none (one run, 2026-11-25); it has not been
trained to the end.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('GPT-2 124M')
  c.vocab = 50257
  c.length = 1024
  c.batch_size = 512
  c.steps = 19_073  # 10 billion tokens
  c.dtype = 'bfloat16'
  c.task = {
    'call': 'bmx.tasks.language:CausalLM',
    'chunks': 8,  # of the tokens: logits exist for one of them at a time
    'model': {
      'call': 'bmx.models.gpt:GPT',
      'vocab_size': c.get_ref('vocab'),
      'vocab_pad': 47,  # 50,304 rows: a multiple of 128, for matrix units and the model axis
      'max_seq_len': c.get_ref('length'),
      'width': 768,
      'depth': 12,
      'heads': 12,
      'positions': 'learned',
      'norm': 'layer',
      'activation': 'gelu',
      'bias': True,
      'tied': True,
      'dropout': 0.0,
      'scan': True,
      'remat': 'auto',  # by the kind of device
      'attention': 'auto',  # by the kind of device
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.text.windows:tokens',
    'path': 'train.bin',
    'vocab_size': c.get_ref('vocab'),
    'split': 'train',
    'length': c.get_ref('length'),
  }
  c.eval.valid = {'split': 'valid', 'batch_size': 64}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 6e-4, 'warmup': 700, 'floor': 6e-5}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'b2': 0.95, 'weight_decay': 0.1, 'clip': 1.0}
  c.grad = {'call': 'bmx.train.gradients:Accumulate', 'steps': 16}
  c.every = {'log': 20, 'eval': 1000, 'save': 1000}
  if check_variant(variant, 'tiny') == 'tiny':
    c.vocab, c.length, c.batch_size, c.steps, c.dtype = 256, 32, 16, 20, 'float32'
    c.task.model.update(width=64, depth=2, heads=4)
    c.data = {'call': 'bmx.data.text.windows:text', 'split': 'train', 'length': c.get_ref('length')}
    c.eval.valid.batch_size = 512
    c.grad.steps = 2
    c.schedule.update(peak=3e-3, warmup=2)
    c.every = {'log': 5, 'eval': 0, 'save': 10}
  return c
