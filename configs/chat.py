"""A GPT that answers: trained on conversations.

    bmx train chat --data.path=my.jsonl --workdir=runs/chat
    bmx chat --workdir=runs/chat
    bmx train chat:finetune --init.path=FOLDER --data.path=my.jsonl
    python -m bmx.main --config=configs/chat.py --config.data.path=my.jsonl
    python -m bmx.main --config=configs/chat.py:finetune --config.init.path=FOLDER ...

A line of my.jsonl is {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant",
"content": "Hello!"}]}; without a file the questions are about functions of Python's standard
library. The loss counts the answers. The model is small and starts from random weights, its
tokenizer is trained on the same messages; `:finetune` takes weights, tokenizer and chat template
of FOLDER, a run of bmx or a Hugging Face directory.

Reaches 0.004 nats a token of the answers on 27 short conversations after 300 steps, in 6 minutes of
two busy CPU cores (1 seed, 2026-11-28): it knows them by heart, and little else (4.7 nats on the 3
held out). Answers to other questions need more conversations, or `:finetune`.
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  check_variant(variant, 'finetune', 'tiny')
  c = base('GPT on conversations')
  c.vocab = 2048
  c.length = 256
  c.batch_size = 4  # rows, of several short conversations each
  c.steps = 300
  c.task = {
    'call': 'bmx.tasks.language:CausalLM',
    'model': {
      'call': 'bmx.models.gpt:GPT',
      'vocab_size': c.get_ref('vocab'),
      'max_seq_len': c.get_ref('length'),
      'width': 128,
      'depth': 4,
      'heads': 4,
      'mlp_dim': 344,  # 8/3 of the width, as gated layers have three matrices
      'positions': 'rotary',
      'norm': 'rms',
      'activation': 'silu',
      'gated': True,
      'bias': False,
      'tied': True,
      'dropout': 0.1,  # few conversations are read often
      'scan': True,  # compiles in a fraction of the time
      'attention': 'auto',  # by the kind of device
      'dtype': c.get_ref('dtype'),
    },
  }
  c.data = {
    'call': 'bmx.data.text.chat:chat',
    'path': '',
    'split': 'train',
    'length': c.get_ref('length'),
    'template': '',
  }
  c.data.tokenizer = {
    'call': 'bmx.data.text.chat:trained',
    'vocab_size': c.get_ref('vocab'),
    'path': c.data.get_ref('path'),
  }
  c.eval.valid = {'split': 'valid', 'metrics': ('bmx.tasks.language:perplexity',)}
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 2e-3, 'warmup': 30, 'floor': 1e-4}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw', 'b2': 0.99, 'weight_decay': 0.1, 'clip': 1.0}
  c.every = {'log': 50, 'eval': 100, 'save': 100}
  if variant == 'finetune':
    c.length, c.steps, c.epochs = 512, 0, 3.0
    c.task.model = {
      'call': 'bmx.adapt.restore:model',
      'path': c.init.get_ref('path'),
      'attention': 'auto',
      'dtype': c.get_ref('dtype'),
    }
    c.data.tokenizer = {'call': 'bmx.data.text.tokenizer:load', 'path': c.init.get_ref('path')}
    c.schedule.update(peak=2e-5, warmup=10, floor=0.0)
    c.optimizer.update(b2=0.999, weight_decay=0.0)
  if variant == 'tiny':
    c.vocab, c.length, c.batch_size, c.steps = 512, 64, 16, 20
    c.task.model.update(width=64, depth=2, mlp_dim=128)
    c.schedule.update(peak=3e-3, warmup=2)
    c.every = {'log': 5, 'eval': 0, 'save': 10}
  return c
