"""A pre-trained BERT, fine-tuned on a labeled task.

Classes of texts (SST-2, GLUE); `:regression` numbers; `:ner` tags of words (named entities); `:qa`
answers to questions (SQuAD's format). `:lora` and `:adalora` train adapters of the encoder, and the
new head (docs/adapt.md).

    python -m bmx.main --config=configs/bert_finetune.py --config.init.path=DIR
    --config.data.path=train.csv --config.data.text=sentence
    --config.eval.valid.path=valid.csv
    python -m bmx.main --config=configs/bert_finetune.py:regression --config.init.path=DIR ...
    python -m bmx.main --config=configs/bert_finetune.py:ner --config.init.path=DIR ...
    python -m bmx.main --config=configs/bert_finetune.py:qa --config.init.path=DIR ...
    python -m bmx.main --config=configs/bert_finetune.py:lora --config.init.path=DIR ...

DIR is a run of bmx (configs/bert_small.py) or a Hugging Face directory of BERT, RoBERTa or
DistilBERT; the sizes, the tokenizer and all weights but the new head come from there.
--config.init.reinit=. trains the same model from scratch.

Reaches 81.5 % on SST-2 in one epoch from bert_small on a million words (3 seeds, 81.2 to 81.9),
from scratch 79.3 % (2026-11-25, two CPU cores, under 10 min: experiments/bert_finetune/README.md).
"""

from bmx.config import base, check_variant


def get_config(variant: str = ''):
  check_variant(
    variant, 'regression', 'ner', 'qa', 'lora', 'adalora', 'tiny', 'tiny_lora', 'tiny_adalora'
  )
  c = base('BERT, fine-tuned')
  c.init.reinit = 'head|pooler'  # 'head' keeps a pooler that next-sentence prediction trained
  c.length = 64
  c.batch_size = 32
  c.epochs = 2.0
  c.data_dir = ''  # of TFDS
  encoder = {
    'call': 'bmx.adapt.restore:encoder',
    'path': c.init.get_ref('path'),
    'dropout': 0.1,
    'attention': 'auto',  # by the kind of device
    'dtype': c.get_ref('dtype'),
  }
  tokenizer = {'call': 'bmx.data.text.tokenizer:load', 'path': c.init.get_ref('path')}
  c.task = {
    'call': 'bmx.tasks.encoder:TextClassification',
    'model': {'call': 'bmx.models.bert:Classifier', 'num_outputs': 'auto', 'encoder': encoder},
  }
  c.data = {
    'call': 'bmx.data.text.text_classification:text_classification',
    'path': 'tfds:glue/sst2/train',
    'text': 'sentence',
    'pair': '',
    'label': 'label',
    'length': c.get_ref('length'),
    'data_dir': c.get_ref('data_dir'),
    'tokenizer': tokenizer,
  }
  c.eval.valid = {
    'path': 'tfds:glue/sst2/validation',
    'length': c.get_ref('length'),
    'batch_size': 128,
    'metrics': ('bmx.tasks.metrics:matthews',),
  }
  c.schedule = {'call': 'bmx.optim.schedules:cosine', 'peak': 2e-4, 'warmup': 100, 'floor': 0.0}
  c.optimizer = {
    'call': 'bmx.optim.optimizers:adamw',
    'weight_decay': 0.01,
    'layer_decay': 0.8,  # blocks near the words move less
    'clip': 1.0,
    'freeze': '',
  }
  c.every = {'log': 100, 'eval': 500, 'save': 500}
  c.keep = {'last': 2, 'metric': 'eval/valid/accuracy', 'mode': 'max'}
  if variant == 'regression':
    c.task.call = 'bmx.tasks.encoder:TextRegression'
    c.data.regression = True
    c.eval.valid.metrics = ('bmx.tasks.metrics:pearson', 'bmx.tasks.metrics:spearman')
    c.keep.metric = 'eval/valid/pearson'
  if variant == 'ner':
    c.task.call, c.task.model.call = 'bmx.tasks.encoder:TokenClassification', TAGGER
    c.data = {
      'call': 'bmx.data.text.token_classification:token_classification',
      'path': 'wnut17train.conll',
      'length': c.get_ref('length'),
      'tokenizer': tokenizer,
    }
    metrics = ('bmx.tasks.metrics:entity_f1',)
    entry = {'batch_size': 64, 'length': 128, 'metrics': metrics}  # no word is cut off there
    c.eval.valid = {'path': 'emerging.dev.conll', **entry}
    c.eval.test = {'path': 'emerging.test.annotated', **entry}
    c.epochs = 10.0
    c.keep.metric = 'eval/valid/entity_f1'
  if variant == 'qa':
    c.task.call = 'bmx.tasks.question_answering:QuestionAnswering'
    c.task.model = {'call': TAGGER, 'num_outputs': 2, 'encoder': encoder}  # first and last token
    c.length = 128
    c.data = {
      'call': 'bmx.data.text.squad:squad',
      'path': 'squad.json',
      'split': 'train',
      'holdout': 0.2,  # of the articles
      'length': c.get_ref('length'),
      'tokenizer': tokenizer,
    }
    c.eval.valid = {
      'split': 'valid',
      'batch_size': 128,
      'metrics': ('bmx.tasks.metrics:exact_match', 'bmx.tasks.metrics:answer_f1'),
    }
    c.epochs = 10.0
    c.keep.metric = 'eval/valid/answer_f1'
  if variant in ('tiny', *TINY):
    _tiny(c)
  if variant.removeprefix('tiny_') in ADAPTERS:
    _adapted(c, variant.removeprefix('tiny_'))
  if variant in TINY:
    # The base is not trained there.
    c.task.train, c.schedule.peak = 'head|pooler|embed', 4e-3 if 'ada' not in variant else 1e-2
  return c


TAGGER = 'bmx.models.bert:Tagger'
ADAPTERS = {'lora': 'bmx.adapt.lora:LoRA', 'adalora': 'bmx.adapt.adalora:AdaLoRA'}
TINY = ('tiny_lora', 'tiny_adalora')


def _adapted(c, name):
  """Freezes all but adapters, the pooler and the head."""
  c.task = {
    'call': ADAPTERS[name],
    'inner': c.task,
    'rank': 8,
    'alpha': 16.0,
    'targets': 'attention/|feed_forward/',
    'train': 'head|pooler',
    'base': 'float32',  # int8 or nf4 keep the frozen kernels in a quarter or an eighth of the bytes
  }
  if name == 'adalora':
    c.task.update(init_rank=12, orthogonality=0.1, delta_t=10)
  c.init.adapter = ''  # a folder of PEFT, or a run of adapters of the same base
  c.optimizer.layer_decay = 1.0
  c.schedule.peak = 1e-3  # adapters take larger steps than whole weights


def _tiny(c):
  """Classifies lines of the standard library as comment or code, without a pre-trained model."""
  c.init.reinit = ''
  c.length, c.batch_size, c.epochs, c.steps = 32, 32, 0.0, 75
  c.task.model.encoder = {
    'call': 'bmx.models.bert:BERT',
    'vocab_size': 512,
    'max_seq_len': c.get_ref('length'),
    'width': 64,
    'depth': 2,
    'heads': 4,
    'dropout': 0.0,
    'attention': 'auto',
  }
  c.data = {
    'call': 'bmx.data.text.text_classification:library',
    'split': 'train',
    'holdout': 0.1,
    'length': c.get_ref('length'),
    'tokenizer': {
      'call': 'bmx.data.text.tokenizer_train:trained',
      'vocab_size': 512,
      'unit': 'line',
    },
  }
  c.eval.valid = {'split': 'valid', 'metrics': ('bmx.tasks.metrics:matthews',)}
  c.schedule.update(peak=2e-3, warmup=4)
  c.optimizer.layer_decay = 0.9
  c.every = {'log': 15, 'eval': 0, 'save': 30}
