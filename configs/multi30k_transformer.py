"""Translation of German into English: a small transformer on Multi30k, or on files of one's own.

    python -m bmx.main --config=configs/multi30k_transformer.py --config.folder=FOLDER
    bmx train multi30k_transformer --folder=FOLDER --workdir=runs/de-en
    bmx generate runs/de-en --prompt="Ein Hund läuft über die Wiese."
    bmx predict runs/de-en --input=sentences.de

FOLDER holds train.de.gz, train.en.gz, val.de.gz, ..., a sentence a line, of github.com/multi30k.
Other files: --data.path, --data.targets, and the same of eval.valid and eval.test. `:finetune`
starts from a Marian, BART or T5 of a Hugging Face folder, --init.path=FOLDER (docs/translation.md).

Reaches 37.3 BLEU and 56.5 chrF on test 2016 (Flickr) with 5 beams after 2,400 steps, 1,080 seconds
of one CPU core (seed 0; 2026-11-28; experiments/translation/run.py).
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('translation, German to English')
  c.folder = ''
  c.vocab = 4000
  c.length = 64
  c.begin = 0  # the end of text, which precedes every target
  c.batch_size = 32
  c.steps = 2400
  c.generate.update(num_beams=5, max_new_tokens=64, temperature=0.0)
  c.task = {
    'call': 'bmx.tasks.seq2seq:Seq2SeqLM',
    'smoothing': 0.1,
    'num_beams': c.generate.get_ref('num_beams'),
    'length_penalty': c.generate.get_ref('length_penalty'),
    'max_new_tokens': c.generate.get_ref('max_new_tokens'),
    'model': {
      'call': 'bmx.models.seq2seq:Seq2Seq',
      'vocab_size': c.get_ref('vocab'),
      'max_seq_len': 0,  # sinusoids have no last position
      'width': 128,
      'depth': 2,
      'heads': 4,
      'mlp_dim': 512,
      'positions': 'sinusoidal',
      'scaled_embed': True,
      'embed_stddev': 0.088,  # 1 / √width, so that an embedded token has the size of its position
      'begin': (0,),
      'dropout': 0.1,
      'scan': False,
      'remat': 'none',
      'attention': 'auto',  # by the kind of device
      'dtype': c.get_ref('dtype'),
    },
  }
  part = lambda name: c.get_ref('folder') + f'/{name}.gz'
  c.data = {
    'call': 'bmx.data.text.parallel:parallel',
    'path': part('train.de'),
    'targets': part('train.en'),
    'length': c.get_ref('length'),
    'packed': True,
    'begin': c.get_ref('begin'),
    'long': 'skip',
    'tokenizer': {
      'call': 'bmx.data.text.tokenizer_train:trained',
      'kind': 'bpe',
      'vocab_size': c.get_ref('vocab'),
      'path': part('train.de'),
      'other': part('train.en'),
    },
  }
  metrics = tuple(f'bmx.tasks.translation:{name}' for name in ('bleu', 'chrf'))
  c.eval.valid = {
    'path': part('val.de'), 'targets': part('val.en'), 'batch_size': 128, 'metrics': metrics,
  }  # fmt: skip
  c.eval.test = {
    'path': part('test_2016_flickr.de'),
    'targets': part('test_2016_flickr.en'),
    'batch_size': 128,
    'metrics': metrics,
  }
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 2.5e-3, 'warmup': 300, 'floor': 1e-5}
  c.optimizer = {
    'call': 'bmx.optim.optimizers:adamw',
    'b2': 0.98,
    'weight_decay': 0.01,
    'clip': 1.0,
  }
  c.ema = 0.998
  c.every = {'log': 100, 'eval': -3, 'save': 500}
  check_variant(variant, 'finetune', 'tiny')
  if variant == 'finetune':
    c.begin = -1  # the padding of the folder's tokenizer
    own = {'path': c.init.get_ref('path')}
    c.task.model = own | {'call': 'bmx.adapt.restore:model', 'dtype': c.get_ref('dtype')}
    c.data.tokenizer = own | {'call': 'bmx.data.text.tokenizer:load'}
    c.schedule.update(peak=1e-4)
  if variant == 'tiny':
    c.vocab, c.length, c.batch_size, c.steps = 512, 48, 16, 40
    c.generate.update(num_beams=2, max_new_tokens=32)
    c.task.model.update(width=32, heads=2, mlp_dim=64, dropout=0.0, embed_stddev=0.177)
    c.data = {
      'call': 'bmx.data.text.numbers:numbers',
      'split': 'train',
      'length': c.get_ref('length'),
      'begin': c.get_ref('begin'),
      'tokenizer': {
        'call': 'bmx.data.text.tokenizer_train:trained',
        'kind': 'bpe',
        'vocab_size': c.get_ref('vocab'),
        'unit': 'line',
      },
    }
    c.eval = {'valid': {'split': 'valid', 'count': 16, 'batch_size': 16, 'metrics': metrics}}
    c.schedule.update(peak=1e-2, warmup=4)
    c.ema = 0.8
    c.every = {'log': 10, 'eval': 0, 'save': 20}
  return c
