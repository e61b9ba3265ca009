"""Parameter counts against the published ones; nothing is computed, only shapes."""

import jax
import jax.numpy as jnp
import pytest

import bmx.config
from bmx.core import tree
from bmx.core.hardware import preset
from bmx.models.bert import BERT, Classifier, Pretraining, Tagger
from bmx.models.cnn import CNN
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.models.resnet import ResNet
from bmx.models.vit import ViT
from tests.models.weights import shapes


def parameters(model, *inputs):
  return tree.count(shapes(model, *inputs)['params'])


def of_tokens(model):
  ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  return parameters(model, ids) - model.facts.padded_parameters


@pytest.mark.parametrize(('recipe', 'expected', 'padded'), [
  ('configs/gpt2_124m.py', 124_439_808, 47 * 768),
  ('configs/llama_1b.py', 1_235_814_400, 0),
  ('configs/llama_8b.py', 8_030_261_248, 0),
  ('configs/llama_70b.py', 70_553_706_496, 0),
  ('configs/moe.py', 46_702_792_704, 0),  # Mixtral 8x7B as published
  ('configs/bert_base.py', 110_106_428, 0),  # with both heads, as published
  ('configs/bert_small.py', 11_726_096, 0),  # see `test_bert_small_by_hand`
])  # fmt: skip
def test_recipes(recipe, expected, padded, pytestconfig):
  config, _ = bmx.config.load(str(pytestconfig.rootpath / recipe))
  settled = bmx.config.settle(bmx.config.plain(config)['task'], preset('cpu', 'float32'))
  task = bmx.config.build(settled, 'task')
  assert task.model.facts.padded_parameters == padded
  assert of_tokens(task.model) == expected


GPT2 = {'vocab_size': 50257, 'max_seq_len': 1024}
LLAMA = {'positions': 'rotary', 'norm': 'rms', 'gated': True, 'bias': False, 'max_seq_len': 4096}

# Radford et al. 2019 and the weights published with it; Touvron et al. 2023; Dubey et al. 2024;
# Zhang et al. 2024.
PUBLISHED = {
  'GPT-2 medium': (354_823_168, GPT2 | {'width': 1024, 'depth': 24, 'heads': 16}),
  'GPT-2 large': (774_030_080, GPT2 | {'width': 1280, 'depth': 36, 'heads': 20}),
  'GPT-2 XL': (1_557_611_200, GPT2 | {'width': 1600, 'depth': 48, 'heads': 25}),
  'Llama 2 7B': (
    6_738_415_616,
    LLAMA | {'vocab_size': 32000, 'width': 4096, 'depth': 32, 'heads': 32, 'mlp_dim': 11008, 'tied':
    False},
  ),
  'Llama 3 8B': (
    8_030_261_248,
    LLAMA | {'vocab_size': 128_256, 'width': 4096, 'depth': 32, 'heads': 32, 'kv_heads': 8,
             'mlp_dim': 14336, 'tied': False},
  ),
  'TinyLlama 1.1B': (
    1_100_048_384,
    LLAMA | {'vocab_size': 32000, 'width': 2048, 'depth': 22, 'heads': 32, 'kv_heads': 4, 'mlp_dim':
             5632, 'tied': False},
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', PUBLISHED)
def test_published(name):
  expected, options = PUBLISHED[name]
  assert of_tokens(GPT(**options, scan=True)) == expected


BASE = {'vocab_size': 30522, 'max_seq_len': 512, 'scan': True}
LARGE = {'width': 1024, 'depth': 24, 'heads': 16}
ROBERTA = BASE | {'vocab_size': 50265, 'first_position': 2, 'types': 1}

# Devlin et al. 2019 and Liu et al. 2019, as transformers counts their weights. An encoder's pooler
# is there where a head reads it: a classifier of 2 is the encoder with it, and 2 · width + 2.
ENCODERS = {
  'BERT base, both heads': (110_106_428, Pretraining(BERT(**BASE), True)),
  'BERT base, masked words': (109_514_298, Pretraining(BERT(**BASE))),
  'BERT base, two classes': (109_483_778, Classifier(BERT(**BASE), 2)),
  'BERT base, pooled': (109_482_240 + 768 + 1, Classifier(BERT(**BASE), 1)),
  'BERT base, tags': (108_891_648 + 9 * 768 + 9, Tagger(BERT(**BASE), 9)),
  'BERT large': (335_141_888 + 1024 + 1, Classifier(BERT(**BASE, **LARGE), 1)),
  'BERT large, both heads': (336_226_108, Pretraining(BERT(**BASE, **LARGE), True)),
  'RoBERTa base': (124_645_632 + 768 + 1, Classifier(BERT(**ROBERTA), 1)),
  'RoBERTa base, masked words': (124_697_433, Pretraining(BERT(**ROBERTA))),
  'DistilBERT base, masked words': (66_985_530, Pretraining(BERT(**BASE, types=0, depth=6))),
  'DistilBERT base, tags': (66_362_880 + 9 * 768 + 9, Tagger(BERT(**BASE, types=0, depth=6), 9)),
}


@pytest.mark.parametrize('name', ENCODERS)
def test_encoders(name):
  expected, model = ENCODERS[name]
  assert of_tokens(model) == expected


def test_encoders_are_those_of_hugging_face():
  pytest.importorskip('torch')
  t = pytest.importorskip('transformers')
  sizes = {'hidden_size': 12, 'num_hidden_layers': 2, 'num_attention_heads': 2,
           'intermediate_size': 20, 'vocab_size': 31}  # fmt: skip
  count = lambda model: sum(p.numel() for p in model.parameters())
  ours = {'vocab_size': 31, 'width': 12, 'depth': 2, 'heads': 2, 'mlp_dim': 20}
  e = BERT(**ours, max_seq_len=16, types=3)
  config = t.BertConfig(**sizes, max_position_embeddings=16, type_vocab_size=3)
  assert of_tokens(Pretraining(e, True)) == count(t.BertForPreTraining(config))
  assert of_tokens(Pretraining(e)) == count(t.BertForMaskedLM(config))
  assert of_tokens(Classifier(e, 2)) == count(t.BertForSequenceClassification(config))
  assert of_tokens(Tagger(e, 2)) == count(t.BertForTokenClassification(config))
  e = BERT(**ours, max_seq_len=16, types=1, first_position=2)
  config = t.RobertaConfig(**sizes, max_position_embeddings=18, type_vocab_size=1)
  assert of_tokens(Pretraining(e)) == count(t.RobertaForMaskedLM(config))
  e = BERT(**ours, max_seq_len=16, types=0)
  config = t.DistilBertConfig(
    vocab_size=31, dim=12, n_layers=2, n_heads=2, hidden_dim=20, max_position_embeddings=16
  )
  assert of_tokens(Pretraining(e)) == count(t.DistilBertForMaskedLM(config))
  assert of_tokens(Classifier(e, 2)) == count(t.DistilBertForSequenceClassification(config))


def test_bert_small_by_hand(pytestconfig):
  """configs/bert_small.py: the figure above, layer by layer."""
  vocab, length, width, hidden = 10_000, 50, 512, 2048
  dense = lambda a, b: a * b + b
  norm = 2 * width
  words = (vocab + length + 2) * width + norm
  block = 4 * dense(width, width) + dense(width, hidden) + dense(hidden, width) + 2 * norm
  head = dense(width, width) + norm + vocab
  total = words + 2 * block + head
  e = BERT(vocab, length, width, depth=2, heads=8)
  assert of_tokens(Pretraining(e)) == total
  recipe, _ = bmx.config.load(str(pytestconfig.rootpath / 'configs/bert_small.py'))
  settled = bmx.config.settle(bmx.config.plain(recipe)['task'], preset('cpu', 'float32'))
  assert of_tokens(bmx.config.build(settled, 'task').model) == total


@pytest.mark.parametrize('head', [Pretraining, Classifier, Tagger])
def test_padding_scan_and_remat_of_encoders_count_nothing(head):
  base = {'vocab_size': 113, 'max_seq_len': 32, 'width': 32, 'depth': 3, 'heads': 2}
  plain = of_tokens(head(BERT(**base)))
  for options in ({'vocab_pad': 15}, {'scan': True}, {'scan': True, 'remat': 'full'}):
    assert of_tokens(head(BERT(**base, **options))) == plain


@pytest.mark.parametrize('options', [
  {}, {'tied': False}, {'vocab_pad': 15}, {'vocab_pad': 15, 'tied': False}, {'remat': 'full'},
])  # fmt: skip
def test_padding_scan_and_remat_count_nothing(options):
  base = {'vocab_size': 113, 'max_seq_len': 32, 'width': 32, 'depth': 3}
  plain = of_tokens(GPT(**base, tied=options.get('tied', True)))
  assert of_tokens(GPT(**base, **options)) == plain
  assert of_tokens(GPT(**base, **options, scan=True)) == plain


def test_mlp():
  """784 · 256 + 256 and 256 · 10 + 10."""
  assert parameters(MLP(10), jnp.zeros((1, 28, 28, 1))) == 203_530


def test_cnn():
  """5 · 5 · 1 · 32 + 32; a 14 × 14 × 32 map to 128; 128 to 10."""
  expected = 832 + (6272 * 128 + 128) + (128 * 10 + 10)
  assert parameters(CNN(10), jnp.zeros((1, 28, 28, 1))) == expected


def test_batch_norm_replaces_the_bias_of_a_convolution():
  """Two numbers a channel instead of one."""
  image = jnp.zeros((1, 8, 8, 3))
  plain, normed = (CNN(10, (16, 24), 3, norm=norm) for norm in ('', 'batch'))
  assert parameters(normed, image) - parameters(plain, image) == 16 + 24


IMAGE = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)


@pytest.mark.parametrize(('depth', 'expected'), [
  (18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808),
])  # fmt: skip
def test_resnets(depth, expected):
  """As torchvision publishes them: running statistics are not counted."""
  assert parameters(ResNet(1000, depth=depth), IMAGE) == expected


def test_group_norm_has_as_many_parameters():
  assert parameters(ResNet(1000, depth=18, norm='group'), IMAGE) == 11_689_512


CLIP = {'pre_norm': True, 'patch_bias': False, 'head_bias': False, 'activation': 'quick_gelu'}


@pytest.mark.parametrize(('expected', 'outputs', 'options'), [
  (5_717_416, 1000, {'width': 192, 'heads': 3}),  # ViT-Ti/16
  (22_050_664, 1000, {'width': 384, 'heads': 6}),  # S/16
  (86_567_656, 1000, {}),  # B/16
  (304_326_632, 1000, {'width': 1024, 'depth': 24, 'heads': 16}),  # L/16
  (87_338_192, 1000, {'distillation': 'head'}),  # DeiT-B distilled, with both heads
  (87_849_216, 512, CLIP | {'patch_size': 32}),  # CLIP ViT-B/32 with its projection
])  # fmt: skip
def test_vision_transformers(expected, outputs, options):
  assert parameters(ViT(outputs, **options, scan=True), IMAGE) == expected


def test_fixed_positions_and_the_mean_of_patches_need_no_parameters():
  table, token = (1 + 196) * 768, 768
  fixed = ViT(1000, pool='mean', positions='sincos', scan=True)
  assert parameters(fixed, IMAGE) == 86_567_656 - table - token
