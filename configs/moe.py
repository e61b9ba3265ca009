"""A mixture of experts in the shape of Mixtral 8x7B (Jiang et al. 2024).

46,702,792,704 parameters, of which 12.9 billion are active for a token.

    python -m bmx.main --config=configs/moe.py --config.data.path=train.bin
    --config.mesh.expert=8 --config.mesh.fsdp=16

train.bin holds uint16 token ids of Llama 2's tokenizer, one after another.

Reaches the published number of parameters, and fits v5p:4x4x4 (`--mode=plan`); it has not been
trained.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('Mixtral 8x7B')
  c.vocab = 32_000
  c.length = 4096
  c.batch_size = 512
  c.steps = 50_000  # 105 billion tokens
  c.dtype = 'bfloat16'
  c.task = {
    'call': 'bmx.tasks.language:CausalLM',
    'model': {
      'call': 'bmx.models.gpt:GPT',
      'vocab_size': c.get_ref('vocab'),
      'max_seq_len': c.get_ref('length'),
      'width': 4096,
      'depth': 32,
      'heads': 32,
      'kv_heads': 8,
      'mlp_dim': 14336,
      'positions': 'rotary',
      'theta': 1_000_000.0,
      'norm': 'rms',
      'activation': 'silu',
      'gated': True,
      'bias': False,
      'tied': False,
      'experts': 8,
      'top_k': 2,
      'capacity_factor': 1.25,  # 0.0 drops no token, and holds the worst case in memory
      'load_balance_coef': 0.01,  # Fedus et al. 2022
      'router_z_coef': 0.001,  # Zoph et al. 2022
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
    'split': 'train',
    'length': c.get_ref('length'),
  }
  c.eval.valid = {'split': 'valid', 'batch_size': 128}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 3e-4, 'warmup': 2000, 'floor': 3e-5}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'b2': 0.95, 'weight_decay': 0.1, 'clip': 1.0}
  c.grad = {'call': 'bmx.train.gradients:Accumulate', 'steps': 4}
  c.every = {'log': 10, 'eval': 1000, 'save': 500}
  if check_variant(variant, 'tiny') == 'tiny':
    # Every layout on 8 devices divides it.
    c.vocab, c.length, c.batch_size, c.steps, c.dtype = 256, 32, 16, 20, 'float32'
    c.task.model.update(width=64, depth=2, heads=4, kv_heads=4, mlp_dim=32)
    c.data = {'call': 'bmx.data.text.windows:text', 'split': 'train', 'length': c.get_ref('length')}
    c.eval.valid.batch_size = 512
    c.grad.steps = 1
    c.schedule.update(peak=3e-3, warmup=2)
    c.every = {'log': 5, 'eval': 0, 'save': 10}
  return c
