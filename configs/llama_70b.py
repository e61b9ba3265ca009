"""Llama 3.1 70B: 70,553,706,496 parameters (Dubey et al. 2024).

    python -m bmx.main --config=configs/llama_70b.py --config.data.path=train.bin
    --config.mesh.fsdp=128 --config.mesh.model=8

train.bin holds uint32 token ids of Llama 3's tokenizer, one after another.

Reaches the published number of parameters, and fits v5p:8x8x16 (`--mode=plan`); it has not been
trained.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('Llama 3.1 70B')
  c.vocab = 128_256
  c.length = 4096
  c.batch_size = 1024
  c.steps = 50_000  # 210 billion tokens
  c.dtype = 'bfloat16'
  c.task = {
    'call': 'bmx.tasks.language:CausalLM',
    'model': {
      'call': 'bmx.models.gpt:GPT',
      'vocab_size': c.get_ref('vocab'),
      'vocab_pad': 0,  # 128,256 is a multiple of 128 already
      'max_seq_len': c.get_ref('length'),
      'width': 8192,
      'depth': 80,
      'heads': 64,
      'kv_heads': 8,
      'mlp_dim': 28672,
      'positions': 'rotary',
      'theta': 500_000.0,
      'norm': 'rms',
      'activation': 'silu',
      'gated': True,
      'bias': False,
      'tied': False,
      'scan': True,
      'remat': 'full',
      'attention': 'auto',  # by the kind of device
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.text.windows:tokens',
    'path': 'train.bin',
    'vocab_size': c.get_ref('vocab'),
    'dtype': 'uint32',
    'split': 'train',
    'length': c.get_ref('length'),
  }
  c.eval.valid = {'split': 'valid', 'batch_size': 32}
  c.schedule = {
    'call': 'bmx.optim.schedules:cosine',
    'peak': 1.5e-4,
    'warmup': 2000,
    'floor': 1.5e-5,
  }
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'b2': 0.95, 'weight_decay': 0.1, 'clip': 1.0}
  c.grad = {'call': 'bmx.train.gradients:Accumulate', 'steps': 1}
  c.every = {'log': 10, 'eval': 1000, 'save': 500}
  if check_variant(variant, 'tiny') == 'tiny':
    c.vocab, c.length, c.batch_size, c.steps, c.dtype = 256, 32, 16, 20, 'float32'
    c.task.model.update(width=64, depth=2, heads=4, kv_heads=2, mlp_dim=128)
    c.data = {'call': 'bmx.data.text.windows:text', 'split': 'train', 'length': c.get_ref('length')}
    c.eval.valid.batch_size = 512
    c.grad.steps = 2
    c.schedule.update(peak=3e-3, warmup=2)
    c.every = {'log': 5, 'eval': 0, 'save': 10}
  return c
