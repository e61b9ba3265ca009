"""Folders of Hugging Face: the same numbers as transformers, both ways, wherever arrays lie."""

import functools
import json
import logging
import math
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from bmx import config as recipes
from bmx.adapt import export, hub, restore
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.tree import nested
from bmx.core.types import facts_of
from bmx.models.bert import BERT, Classifier, Pretraining, Tagger
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.parallel import Layout, make_mesh, unbox
from bmx.parallel.sharding import param_pspecs, shardings
from tests.conftest import ROOT
from tests.models.weights import drawn, jit

B, T, V = 2, 12, 103
PAD = {'bert': 0, 'roberta': 1, 'distilbert': 0}
SIZES = {
  'vocab_size': V, 'hidden_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 4,
  'intermediate_size': 40, 'max_position_embeddings': 20, 'initializer_range': 0.2,
}  # fmt: skip
ROPE = {
  'rope_type': 'llama3', 'rope_theta': 100.0, 'factor': 8.0, 'low_freq_factor': 1.0,
  'high_freq_factor': 4.0, 'original_max_position_embeddings': 16,
}  # fmt: skip
YARN = {
  'rope_type': 'yarn', 'rope_theta': 100.0, 'factor': 4.0, 'original_max_position_embeddings': 16,
}  # fmt: skip
GPT2 = {
  'vocab_size': V, 'n_embd': 24, 'n_layer': 2, 'n_head': 4, 'n_positions': 20,
  'initializer_range': 0.2, 'bos_token_id': None, 'eos_token_id': None,
}  # fmt: skip
LLAMA = SIZES | {'num_key_value_heads': 2}
DISTILBERT = {
  'vocab_size': V, 'dim': 24, 'n_layers': 2, 'n_heads': 4, 'hidden_dim': 40,
  'max_position_embeddings': 20, 'initializer_range': 0.2,
}  # fmt: skip
# case -> (architecture, what its config says)
CASES = {
  'gpt2': ('GPT2LMHeadModel', GPT2),
  'gpt2 untied': (
    'GPT2LMHeadModel',
    GPT2 | {'tie_word_embeddings': False, 'n_inner': 30, 'activation_function': 'relu'},
  ),
  'llama': ('LlamaForCausalLM', LLAMA | {'head_dim': 10, 'rope_parameters': ROPE}),
  'llama biased': (
    'LlamaForCausalLM',
    LLAMA | {'attention_bias': True, 'mlp_bias': True, 'tie_word_embeddings': True},
  ),
  'llama linear': (
    'LlamaForCausalLM',
    LLAMA | {'rope_parameters': {'rope_type': 'linear', 'factor': 3.0, 'rope_theta': 50.0}},
  ),
  'llama yarn': ('LlamaForCausalLM', LLAMA | {'head_dim': 12, 'rope_parameters': YARN}),
  'qwen2': ('Qwen2ForCausalLM', LLAMA | {'rms_norm_eps': 1e-3}),
  'mistral': ('MistralForCausalLM', LLAMA | {'sliding_window': 4}),
  'mistral unlimited': ('MistralForCausalLM', LLAMA | {'sliding_window': None, 'head_dim': 10}),
  'qwen3': ('Qwen3ForCausalLM', LLAMA | {'head_dim': 10}),
  'qwen3 biased': ('Qwen3ForCausalLM', LLAMA | {'head_dim': 6, 'attention_bias': True}),
  'bert': ('BertModel', SIZES),
  'bert masked': ('BertForMaskedLM', SIZES | {'hidden_act': 'relu'}),
  'bert pretraining': ('BertForPreTraining', SIZES),
  'bert classifier': ('BertForSequenceClassification', SIZES | {'num_labels': 5}),
  'bert tagger': ('BertForTokenClassification', SIZES | {'num_labels': 5}),
  'bert answers': ('BertForQuestionAnswering', SIZES),
  'roberta classifier': (
    'RobertaForSequenceClassification',
    SIZES | {'type_vocab_size': 1, 'num_labels': 5},
  ),
  'roberta tagger': ('RobertaForTokenClassification', SIZES | {'type_vocab_size': 1}),
  'roberta answers': ('RobertaForQuestionAnswering', SIZES | {'type_vocab_size': 1}),
  'roberta camembert': ('CamembertForMaskedLM', SIZES | {'type_vocab_size': 1}),
  'roberta xlm': ('XLMRobertaForSequenceClassification', SIZES | {'type_vocab_size': 1}),
  'roberta': ('RobertaModel', SIZES | {'type_vocab_size': 1}),
  'roberta masked': ('RobertaForMaskedLM', SIZES | {'type_vocab_size': 1}),
  'distilbert': ('DistilBertModel', DISTILBERT | {'sinusoidal_pos_embds': True}),
  'distilbert masked': ('DistilBertForMaskedLM', DISTILBERT | {'activation': 'relu'}),
  'distilbert classifier': (
    'DistilBertForSequenceClassification',
    DISTILBERT | {'num_labels': 5},
  ),
  'distilbert tagger': ('DistilBertForTokenClassification', DISTILBERT | {'num_labels': 5}),
  'distilbert answers': ('DistilBertForQuestionAnswering', DISTILBERT),
}


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
  """Returns a function: case -> (a folder that transformers wrote, its model)."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()

  @functools.cache
  def make(case):
    name, values = CASES[case]
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**values)).eval()
    for parameter in model.parameters():
      if parameter.ndim == 1:  # biases and scales that matter
        parameter.data += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp('reference')
    model.save_pretrained(folder)
    return folder, model

  return make


def inputs(case):
  """(tokens, positions, segment_ids, types); the second row of an encoder ends in padding."""
  tokens = np.random.default_rng(0).integers(2, V, (B, T)).astype(np.int32)
  family = case.split()[0]
  if family not in PAD:
    return tokens, None, None, None
  segments, types = np.ones_like(tokens), np.zeros_like(tokens)
  segments[1, 7:], tokens[1, 7:] = 0, PAD[family]
  types[:, 5:] = family == 'bert'
  return tokens, None, segments, types


def outputs_of_torch(model, case):
  torch = pytest.importorskip('torch')
  tokens, _, segments, types = (None if x is None else torch.tensor(x).long() for x in inputs(case))
  words = {} if segments is None else {'attention_mask': segments, 'token_type_ids': types}
  if case.startswith('distilbert'):
    del words['token_type_ids']
  with torch.no_grad():
    found = model(tokens, **words)
  if 'start_logits' in found:
    return [torch.stack([found['start_logits'], found['end_logits']], -1).numpy()]
  return [x.numpy() for x in found.values() if torch.is_tensor(x)]


def arguments(model, given):
  return given[:3] if isinstance(model, GPT) else given


def both(model):
  """An encoder alone tells its hidden states and what it pools of them."""
  pools = type(model) is BERT and model.types  # DistilBERT alone has no pooler
  return (lambda m, *x: ((h := m(*x)), m.pool(h))) if pools else None


@functools.cache
def boxed(model, case='gpt2'):
  given = arguments(model, inputs(case))
  init = lambda key: model.init(key, *given, method=both(model))
  return jax.eval_shape(init, jax.random.PRNGKey(0))['params']


def abstract(model, case='gpt2'):
  return unbox(boxed(model, case))


def outputs(model, params, case):
  given = arguments(model, inputs(case))
  found = jit(lambda p: model.apply({'params': p}, *given, method=both(model)))(params)
  return [x for x in (found if isinstance(found, tuple) else (found,)) if x is not None]


def assert_near(found, expected, case):
  segments = inputs(case)[2]
  assert len(found) == len(expected)
  for x, y in zip(found, expected, strict=True):
    assert x.shape == y.shape
    real = ... if segments is None or x.ndim < 3 else segments > 0
    error = np.abs(np.asarray(x)[real] - y[real]).max()
    assert error <= 1e-5 * np.abs(y[real]).max(), error


def assert_equal(found, expected):
  assert found.keys() == expected.keys()
  for name, x in found.items():
    np.testing.assert_array_equal(x, expected[name], err_msg=name)


def loaded(folder, model, case='gpt2', **options):
  return nested(hub.load(folder, abstract(model, case), **options))


def stored(folder):
  """Every tensor of a folder, as its bits."""
  bits = {2: np.uint16, 4: np.uint32}
  found = {}
  for path in sorted(folder.glob('*.safetensors')):
    found |= {k: x.view(bits[x.dtype.itemsize]) for k, x in load_file(path).items()}
  return found


# Beside transformers.


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('case', CASES)
def test_outputs_are_those_of_transformers(reference, case, scan):
  folder, expected = reference(case)
  model = restore.model(str(folder), scan=scan)
  found = outputs(model, loaded(folder, model, case), case)
  assert_near(found, outputs_of_torch(expected, case), case)


@pytest.mark.parametrize('case', CASES)
def test_what_is_written_again_is_the_same(reference, case, tmp_path):
  """Every bit of every tensor, and the config: transformers computes the same numbers."""
  transformers = pytest.importorskip('transformers')
  folder, expected = reference(case)
  model = restore.model(str(folder), scan=case.startswith('llama'))
  name = CASES[case][0] if 'Answer' in CASES[case][0] else ''
  hub.save(tmp_path / 'out', model, loaded(folder, model, case), architecture=name)
  assert_equal(stored(tmp_path / 'out'), stored(folder))
  kind = getattr(transformers, CASES[case][0])
  again, told = kind.from_pretrained(tmp_path / 'out', output_loading_info=True)
  assert not any(told.values())
  assert_near(outputs_of_torch(again, case), outputs_of_torch(expected, case), case)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_is_kept(reference, dtype, tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  _, expected = reference('llama')
  copy = type(expected)(expected.config).to(getattr(torch, dtype))
  copy.save_pretrained(tmp_path / 'half')
  for scan in (False, True):
    model = restore.model(str(tmp_path / 'half'), scan=scan)
    params = loaded(tmp_path / 'half', model)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
    hub.save(tmp_path / f'{scan}', model, params, dtype=dtype)
    assert_equal(stored(tmp_path / f'{scan}'), stored(tmp_path / 'half'))
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'True')
  assert again.dtype == getattr(torch, dtype)


def test_files_of_a_large_model(reference, tmp_path):
  """Both sides cut, both sides read what the other cut."""
  transformers = pytest.importorskip('transformers')
  folder, expected = reference('bert pretraining')
  expected.save_pretrained(tmp_path / 'theirs', max_shard_size='20KB')
  model = restore.model(str(folder))
  params = loaded(tmp_path / 'theirs', model, 'bert')
  assert_equal(tree.named(params), tree.named(loaded(folder, model, 'bert')))
  text = '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'
  hub.save(tmp_path / 'ours', model, params, shard_bytes=20_000, tokenizer=text)
  files = sorted(p.name for p in (tmp_path / 'ours').iterdir())
  assert 'model.safetensors.index.json' in files
  assert 'model-00003-of-00003.safetensors' in files
  assert max(p.stat().st_size for p in (tmp_path / 'ours').glob('*.safetensors')) < 24_000
  assert (tmp_path / 'ours/tokenizer.json').read_text() == text
  _, told = transformers.BertForPreTraining.from_pretrained(
    tmp_path / 'ours', output_loading_info=True
  )
  assert not any(told.values())
  assert_equal(tree.named(loaded(tmp_path / 'ours', model, 'bert')), tree.named(params))


# Without transformers.

SCALING = {'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
           'original_max_position_embeddings': 16.0}  # fmt: skip
SMALL = {'max_seq_len': 16, 'width': 32, 'heads': 8, 'depth': 4, 'mlp_dim': 64}
MODELS = {
  'gpt2': lambda **o: GPT(vocab_size=V, **SMALL, **o),
  'llama': lambda **o: GPT(
    vocab_size=V, **SMALL, kv_heads=4, head_dim=6, positions='rotary', theta=500.0,
    rope_scaling=SCALING, norm='rms', gated=True, activation='silu', bias=False,
    tied=False, **o,
  ),
  'bert': lambda **o: Classifier(BERT(vocab_size=V, **SMALL, **o), num_outputs=3),
  'roberta': lambda **o: Pretraining(BERT(vocab_size=V, **SMALL, types=1, first_position=2, **o)),
  'distilbert': lambda **o: Classifier(BERT(V, **SMALL, types=0, pooler_activation='relu', **o), 3),
}  # fmt: skip


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """Returns a function: kind -> (folder, model, params)."""

  @functools.cache
  def make(kind):
    model = MODELS[kind]()
    params, folder = drawn(abstract(model)), tmp_path_factory.mktemp('written') / kind
    hub.save(folder, model, params)
    return folder, model, params

  return make


@pytest.fixture
def copy(written, tmp_path):
  """A folder to spoil."""
  return lambda kind='gpt2': shutil.copytree(written(kind)[0], tmp_path / 'copy')


@pytest.mark.parametrize('kind', MODELS)
def test_there_and_back(written, kind):
  folder, model, params = written(kind)
  again = restore.model(str(folder))
  assert type(again) is type(model)
  assert_equal(tree.named(loaded(folder, again)), tree.named(params))


def stacked(params):
  """As a scan over layers holds them."""
  flat, found = tree.named(params), {}
  for name, x in flat.items():
    key = name.replace('stack/block_0/', 'stack/blocks/')
    layers = [flat[name.replace('block_0', f'block_{i}')] for i in range(SMALL['depth'])]
    if 'stack/block_' not in name or key != name:
      found[key] = x if key == name else np.stack(layers)
  return nested(found)


IN_HEADS = {'heads': (), 'kv': (), 'head': ('model',)}
LAYOUTS = {
  'fsdp': ({'data': 1, 'fsdp': 8}, {}),
  'model': ({'data': 2, 'model': 4}, {}),
  'model, in heads': ({'data': 4, 'model': 2}, IN_HEADS),
  'pipe': ({'data': 1, 'fsdp': 2, 'model': 2, 'pipe': 2}, {}),
  'copies': ({'data': 8}, {}),
}


@pytest.mark.parametrize('kind', MODELS)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_shards_are_parts_of_the_whole(written, kind, layout):
  """Every device gets its part, and what pads the vocabulary is zero."""
  folder, _, params = written(kind)
  mesh, rules = LAYOUTS[layout]
  place = Layout(make_mesh(mesh), rules)
  shapes = boxed(MODELS[kind](scan=layout == 'pipe', vocab_pad=153))
  at = shardings(param_pspecs(shapes, place), place.mesh)
  shapes = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), unbox(shapes), at
  )
  expected = tree.named(stacked(params) if layout == 'pipe' else params)
  found = hub.load(folder, shapes)
  assert found.keys() == expected.keys()
  for name, s in tree.named(at).items():
    x = expected[name]
    rows = [(0, 153)] + [(0, 0)] * (x.ndim - 1) if V in x.shape[:1] else [(0, 0)] * x.ndim
    assert found[name].sharding == s, name
    np.testing.assert_array_equal(found[name], np.pad(x, rows), err_msg=name)


@pytest.mark.parametrize('kind', MODELS)
def test_padding_and_stacking_are_not_written(written, kind, tmp_path):
  folder, _, _ = written(kind)
  model = MODELS[kind](scan=True, vocab_pad=25)
  hub.save(tmp_path / 'out', model, loaded(folder, model))
  assert_equal(stored(tmp_path / 'out'), stored(folder))


def test_a_recipe_names_the_folder(written):
  folder = str(written('bert')[0])
  options = {'dtype': 'bfloat16', 'scan': True}
  model = recipes.build({'call': 'bmx.adapt.restore:model', 'path': folder, **options}, 'model')
  assert (model.num_outputs, model.encoder.dtype, model.encoder.scan) == (3, 'bfloat16', True)
  bare = restore.encoder(folder, dropout=0.0)
  assert (type(bare), bare.width, bare.dropout) == (BERT, 32, 0.0)
  with pytest.raises(InputError, match="takes no argument 'widht'; did you mean 'width'"):
    restore.model(folder, widht=3)
  with pytest.raises(InputError, match='gpt:GPT: expected an encoder'):
    restore.encoder(str(written('gpt2')[0]))


def test_another_head_takes_the_encoder(written, caplog):
  folder, _, params = written('bert')
  tagger = Tagger(restore.encoder(str(folder)), num_outputs=7)
  with pytest.raises(InputError, match=r'differs  classifier.weight: has \[3, 32\], expected'):
    hub.load(folder, abstract(tagger))
  with caplog.at_level(logging.INFO, 'bmx'):
    found = hub.load(folder, abstract(tagger), reinit='^head/')
  expected = {k: v for k, v in tree.named(params).items() if 'encoder' in k and 'pool' not in k}
  assert_equal(found, expected)
  assert [r.message.split(': not taken: ')[1] for r in caplog.records] == [
    'bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias, classifier.weight'
  ]


def test_heads_of_pretraining_are_left(tmp_path, caplog):
  encoder = BERT(vocab_size=V, **SMALL)
  model = Pretraining(encoder, next_sentence=True)
  hub.save(tmp_path / 'out', model, drawn(abstract(model)))
  classifier = Classifier(encoder, num_outputs=2)
  with pytest.raises(InputError, match='missing  classifier.bias .2., for head/bias'):
    hub.load(tmp_path / 'out', abstract(classifier))
  with caplog.at_level(logging.INFO, 'bmx'):
    found = hub.load(tmp_path / 'out', abstract(classifier), reinit='head')
  assert set(found) == {k for k in tree.named(abstract(classifier)) if k.startswith('encoder/')}
  assert 'cls.predictions.bias' in caplog.text
  with pytest.raises(InputError, match='matches no parameter'):
    hub.load(tmp_path / 'out', abstract(classifier), reinit='haed')


def rewrite(folder, change):
  """Writes the tensors of a folder as `change` makes them."""
  path = folder / 'model.safetensors'
  tensors = load_file(path)
  save_file(change(tensors) or tensors, path)


def old_bert(tensors):
  names = {k: k.replace('LayerNorm.weight', 'LayerNorm.gamma') for k in tensors}
  names = {k: v.replace('LayerNorm.bias', 'LayerNorm.beta') for k, v in names.items()}
  ids = {'bert.embeddings.position_ids': np.arange(16)[None]}
  return {names[k]: x for k, x in tensors.items()} | ids


def old_gpt2(tensors):
  """As `gpt2` was published: no prefix, and masks."""
  mask = {f'h.{i}.attn.bias': np.ones((1, 1, 16, 16), np.float32) for i in range(4)}
  return {k.removeprefix('transformer.'): x for k, x in tensors.items()} | mask


def other_copy(tensors):
  """The head's name for the table that it shares."""
  tensors['lm_head.weight'] = tensors.pop('transformer.wte.weight')


def both_copies(tensors):
  tensors['lm_head.weight'] = tensors['transformer.wte.weight']


def decoder_copies(tensors):
  tensors['lm_head.decoder.bias'] = tensors.pop('lm_head.bias')
  tensors['lm_head.decoder.weight'] = tensors['roberta.embeddings.word_embeddings.weight']


@pytest.mark.parametrize(('kind', 'change'), [
  ('bert', old_bert), ('gpt2', old_gpt2), ('gpt2', other_copy), ('gpt2', both_copies),
  ('roberta', decoder_copies),
])  # fmt: skip
def test_other_names_for_the_same(written, copy, kind, change, caplog):
  _, model, params = written(kind)
  folder = copy(kind)
  rewrite(folder, change)
  with caplog.at_level(logging.INFO, 'bmx'):
    assert_equal(tree.named(loaded(folder, model)), tree.named(params))
  assert not caplog.records


OTHER = {  # family -> (a copy of a tied tensor, the tensor)
  'gpt2': ('lm_head.weight', 'transformer.wte.weight'),
  'llama biased': ('lm_head.weight', 'model.embed_tokens.weight'),
  'bert masked': ('cls.predictions.decoder.weight', 'bert.embeddings.word_embeddings.weight'),
  'bert pretraining': ('cls.predictions.decoder.bias', 'cls.predictions.bias'),
  'roberta masked': ('lm_head.decoder.bias', 'lm_head.bias'),
  'distilbert masked': (
    'vocab_projector.weight', 'distilbert.embeddings.word_embeddings.weight'
  ),
}  # fmt: skip


@pytest.mark.parametrize('case', OTHER)
def test_copies_of_tied_tensors_with_other_values(reference, tmp_path, case):
  """Transformers reads them untied; so does a GPT, and other models are refused."""
  transformers = pytest.importorskip('transformers')
  copy, name = OTHER[case]
  folder = shutil.copytree(reference(case)[0], tmp_path / 'copy')
  rewrite(folder, lambda x: x | {copy: x[name] + 0.5 * (np.arange(len(x[name])) % 3 == 0).reshape(
    -1, *[1] * (x[name].ndim - 1)).astype(np.float32)})  # fmt: skip
  model = restore.model(str(folder))
  if not isinstance(model, GPT):
    with pytest.raises(InputError, match=f'differs  {copy}: expected the values of {name}'):
      loaded(folder, model, case)
    return
  expected = getattr(transformers, CASES[case][0]).from_pretrained(folder)
  found = outputs(model, loaded(folder, model, case), case)
  assert_near(found, outputs_of_torch(expected, case), case)
  with pytest.raises(InputError, match=f'differs  {copy}: expected the values of {name}'):
    loaded(folder, model.clone(tied=True), case)


def test_a_head_that_the_model_lacks_may_differ(written, copy):
  folder = copy('roberta')
  rewrite(folder, lambda x: x | {'lm_head.decoder.bias': x['lm_head.bias'] + 1})
  model = Classifier(written('roberta')[1].encoder)
  found = hub.load(folder, abstract(model), reinit='head|pooler')
  assert all(k.startswith('encoder/') for k in found)


def test_all_differences_at_once(written, copy):
  folder = copy()

  def change(tensors):
    del tensors['transformer.h.1.mlp.c_fc.weight']
    tensors['transformer.wpe.weight'] = tensors['transformer.wpe.weight'][:-1]
    tensors['transformer.ln_f.bias'] = tensors['transformer.ln_f.bias'].astype(np.int8)
    tensors['transformer.h.4.ln_1.bias'] = np.ones(3, np.float32)
    tensors['lm_head.extra'] = np.ones(3, np.float32)

  rewrite(folder, change)
  with pytest.raises(InputError) as error:
    hub.load(folder, abstract(written('gpt2')[1]))
  assert str(error.value).splitlines()[1:] == [
    '  extra    lm_head.extra [3]',
    '  extra    transformer.h.4.ln_1.bias [3]',
    '  differs  transformer.ln_f.bias: has I8, expected one of BF16, F16, F32, F64',
    '  differs  transformer.wpe.weight: has [15, 32], expected [16, 32]',
    '  missing  transformer.h.1.mlp.c_fc.weight [32, 64], for stack/block_1/feed_forward/up/kernel',
  ]


@pytest.mark.parametrize(('options', 'message'), [
  ({'heads': 4}, r'differs  transformer.h.0.attn.c_attn.weight: has 8 heads, expected 4'),
  ({'vocab_size': 90}, r'differs  transformer.wte.weight: has \[103, 32\], expected \[90, 32\]'),
  ({'tied': False}, r'missing  lm_head.weight \[103, 32\], for head/table'),
  ({'depth': 3}, r'extra    transformer.h.3.ln_1.weight \[32\]'),
  ({'depth': 5}, r'missing  transformer.h.4.ln_1.weight \[32\], for stack/block_4'),
  ({'gated': True}, r'missing  stack/block_0/feed_forward/gate/kernel .*: no tensor is known'),
])  # fmt: skip
@pytest.mark.parametrize('scan', [False, True])
def test_another_model_than_the_folder_has(written, options, message, scan):
  other = GPT(**{'vocab_size': V, **SMALL, 'scan': scan} | options)
  with pytest.raises(InputError, match=message.replace('_0/f', '(_0|s)/f').replace('_4', '(_4|s)')):
    hub.load(written('gpt2')[0], abstract(other))


def spoil_folder(folder):
  shutil.rmtree(folder)


def spoil_config(folder):
  (folder / 'config.json').unlink()


def spoil_json(folder):
  (folder / 'config.json').write_text('{"architectures": ')


def spoil_kind(folder):
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')


def spoil_end(folder):
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-5])


def spoil_start(folder):
  (folder / 'model.safetensors').write_bytes(b'version https://git-lfs.github.com/spec/v1')


def index(folder, places):
  (folder / 'model.safetensors').rename(folder / 'a.safetensors')
  (folder / 'model.safetensors.index.json').write_text(json.dumps(places))


def spoil_index(folder):
  index(folder, {'weight_map': {'x': 'a.safetensors', 'y': 'b.safetensors', 'z': '../c'}})


def spoil_place(folder):
  index(folder, {'weight_map': {'x': 'a.safetensors'}})


def spoil_map(folder):
  index(folder, {})


@pytest.mark.parametrize(('spoil', 'message'), [
  (spoil_folder, 'expected a directory'),
  (spoil_config, 'has no config.json'),
  (spoil_json, 'config.json cannot be read: Expecting value'),
  (spoil_kind, 'no model.safetensors and no .*, only pytorch_model.bin: convert it'),
  (spoil_end, 'model.safetensors is damaged, or no safetensors file: .*not fully covered'),
  (spoil_start, 'model.safetensors is damaged, or no safetensors file'),
  (spoil_index, 'index.json names files that are not there: ../c, b.safetensors'),
  (spoil_place, 'index.json names tensors that are not there: x in a.safetensors'),
  (spoil_map, 'index.json has no weight_map'),
])  # fmt: skip
def test_damaged_folders(written, copy, spoil, message):
  folder = copy()
  spoil(folder)
  with pytest.raises(InputError, match=message):
    hub.load(folder, abstract(written('gpt2')[1]))


def described(tmp_path, name, values):
  (tmp_path / 'config.json').write_text(json.dumps({'architectures': [name], **values}))
  return hub.part(tmp_path)


@pytest.mark.parametrize(('case', 'values', 'message'), [
  ('gpt2', {'activation_function': 'mish'}, "activation_function='mish': supported are gelu_new"),
  ('gpt2', {'scale_attn_weights': False}, 'scale_attn_weights=False: supported is True'),
  ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'layer_idx=True: supported is False'),
  ('gpt2', {'n_head': None}, 'n_head=None: expected int, at least 1'),
  ('gpt2', {'n_head': '4'}, "n_head='4': expected int, at least 1"),
  ('gpt2', {'quantization_config': {'bits': 4}}, "config={'bits': 4}: supported is none"),
  ('llama', {'rope_parameters': ROPE | {'rope_type': 'dynamic'}}, "'dynamic': supported are 'def"),
  ('llama', {'rope_parameters': ROPE | {'factor': None}}, 'factor=None: expected float'),
  ('llama', {'rope_parameters': {'full_attention': ROPE}}, 'full_attention={.*: supported are'),
  ('llama', {'rope_parameters': ROPE | {'partial_rotary_factor': 0.5}}, 'factor=0.5: supp.* 1.0'),
  ('llama', {'rope_parameters': None, 'rope_scaling': {'type': 'longrope', 'factor': 2.0}},
   "rope_scaling.rope_type='longrope': supported"),
  ('llama', {'rope_scaling': {'type': 'linear'}}, 'rope_scaling.factor=None: expected float'),
  ('llama', {'rope_scaling': {'type': 'yarn', 'factor': 0.0}}, 'factor=0.0: expected above 0'),
  ('qwen2', {'use_sliding_window': True}, 'use_sliding_window=True: supported is False'),
  ('qwen2', {'layer_types': ['full_attention', 'sliding_attention']}, "supported is 'full_attent"),
  ('bert', {'position_embedding_type': 'relative_key'}, "'relative_key': supported is 'absolute'"),
  ('bert', {'is_decoder': True}, 'is_decoder=True: supported is False'),
  ('bert', {'tie_word_embeddings': False}, 'tie_word_embeddings=False: supported is True'),
  ('roberta masked', {'hidden_act': 'relu'}, "hidden_act='relu': supported is 'gelu'"),
  ('distilbert', {'tie_weights_': False}, 'tie_weights_=False: supported is True'),
  ('distilbert', {'num_hidden_layers': 0}, 'n_layers=0: expected int, at least 1'),
])  # fmt: skip
def test_what_cannot_be_reproduced(tmp_path, case, values, message):
  name, known = CASES[case]
  with pytest.raises(InputError, match=message):
    described(tmp_path, name, known | values)


def test_all_that_cannot_be_reproduced_at_once(tmp_path):
  values = {'hidden_act': 'mish', 'is_decoder': True, 'vocab_size': 0, 'layer_norm_eps': 'x'}
  with pytest.raises(InputError, match='bmx cannot reproduce this BertModel') as error:
    described(tmp_path, 'BertModel', SIZES | values)
  assert all(f'{key}={value!r}: ' in str(error.value) for key, value in values.items())
  with pytest.raises(InputError, match="'T5Model'.* is not one of GPT2LMHeadModel, LlamaFor"):
    described(tmp_path, 'T5Model', {})


OLD = {k: v for k, v in YARN.items() if k != 'rope_theta'}
SPELLED = {  # what a config.json says of rotary positions
  'scaling wins': {'rope_parameters': ROPE, 'rope_scaling': OLD, 'rope_theta': 70.0},
  'linear wins': {'rope_parameters': YARN, 'rope_scaling': {'type': 'linear', 'factor': 2.0}},
  'length': {'rope_parameters': ROPE, 'original_max_position_embeddings': 5},
  'length of yarn': {'rope_parameters': YARN, 'original_max_position_embeddings': 5},
  'no length': {'rope_parameters': {k: v for k, v in YARN.items() if 'original' not in k}},
  'ends': {'rope_parameters': YARN | {'beta_fast': 3.0, 'beta_slow': 0.2, 'truncate': False}},
  'size': {'rope_parameters': YARN | {'attention_factor': 1.7}},
  'mscale': {'rope_parameters': YARN | {'mscale': 0.7, 'mscale_all_dim': 1.9}},
}


@pytest.mark.parametrize('spelled', SPELLED)
def test_rotary_positions_as_transformers_reads_them(reference, tmp_path, spelled):
  transformers = pytest.importorskip('transformers')
  folder = shutil.copytree(reference('llama')[0], tmp_path / 'copy')
  config = json.loads((folder / 'config.json').read_text())
  for key in ('rope_parameters', 'rope_theta', 'rope_scaling'):
    config.pop(key, None)
  (folder / 'config.json').write_text(json.dumps(config | SPELLED[spelled]))
  expected = transformers.LlamaForCausalLM.from_pretrained(folder)
  model = restore.model(str(folder))
  found = outputs(model, loaded(folder, model), 'llama')
  assert_near(found, outputs_of_torch(expected, 'llama'), 'llama')


def test_both_spellings_of_rotary_positions(tmp_path):
  old = {k: v for k, v in ROPE.items() if k != 'rope_theta'}
  spelled = [
    {'rope_parameters': ROPE},
    {'rope_theta': 100.0, 'rope_scaling': old},
    {'rope_theta': 100, 'rope_scaling': old, 'rope_parameters': ROPE},
  ]
  first, *others = [described(tmp_path, 'LlamaForCausalLM', LLAMA | x) for x in spelled]
  assert (first['theta'], first['rope_scaling']) == (100.0, SCALING)
  assert others == [first, first]


# name -> (config.json as it was published, parameters as its authors and readers count them)
PUBLISHED = {
  'gpt2': ('GPT2LMHeadModel', 124_439_808, {
    'vocab_size': 50257, 'n_positions': 1024, 'n_ctx': 1024, 'n_embd': 768, 'n_layer': 12,
    'n_head': 12, 'activation_function': 'gelu_new', 'layer_norm_epsilon': 1e-5}),
  'Llama-3.1-8B': ('LlamaForCausalLM', 8_030_261_248, {
    'vocab_size': 128256, 'hidden_size': 4096, 'intermediate_size': 14336, 'pretraining_tp': 1,
    'num_hidden_layers': 32, 'num_attention_heads': 32, 'num_key_value_heads': 8,
    'max_position_embeddings': 131072, 'rms_norm_eps': 1e-5, 'rope_theta': 500000.0,
    'rope_scaling': {'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
                     'original_max_position_embeddings': 8192, 'rope_type': 'llama3'}}),
  'Qwen2-0.5B': ('Qwen2ForCausalLM', 494_032_768, {
    'vocab_size': 151936, 'hidden_size': 896, 'intermediate_size': 4864, 'num_hidden_layers': 24,
    'num_attention_heads': 14, 'num_key_value_heads': 2, 'max_position_embeddings': 131072,
    'sliding_window': 131072, 'max_window_layers': 24, 'use_sliding_window': False,
    'tie_word_embeddings': True, 'rope_theta': 1000000.0, 'hidden_act': 'silu'}),
  'bert-base-uncased': ('BertForMaskedLM', 109_514_298, {
    'vocab_size': 30522, 'hidden_size': 768, 'intermediate_size': 3072, 'num_hidden_layers': 12,
    'num_attention_heads': 12, 'max_position_embeddings': 512, 'type_vocab_size': 2,
    'position_embedding_type': 'absolute', 'pad_token_id': 0, 'hidden_act': 'gelu'}),
  'roberta-base': ('RobertaForMaskedLM', 124_697_433, {
    'vocab_size': 50265, 'hidden_size': 768, 'intermediate_size': 3072, 'num_hidden_layers': 12,
    'num_attention_heads': 12, 'max_position_embeddings': 514, 'type_vocab_size': 1,
    'layer_norm_eps': 1e-5, 'pad_token_id': 1, 'hidden_act': 'gelu'}),
  'distilbert-base-uncased': ('DistilBertForMaskedLM', 66_985_530, {
    'vocab_size': 30522, 'dim': 768, 'hidden_dim': 3072, 'n_layers': 6, 'n_heads': 12,
    'max_position_embeddings': 512, 'activation': 'gelu', 'sinusoidal_pos_embds': False,
    'dropout': 0.1, 'attention_dropout': 0.1, 'qa_dropout': 0.1, 'seq_classif_dropout': 0.2,
    'pad_token_id': 0, 'initializer_range': 0.02, 'tie_weights_': True}),
}  # fmt: skip


@pytest.mark.parametrize('name', PUBLISHED)
def test_parameters_of_published_models(tmp_path, name):
  kind, count, values = PUBLISHED[name]
  described(tmp_path, kind, values)
  model = restore.model(str(tmp_path), scan=True)
  assert tree.count(abstract(model)) == count
  assert facts_of(model).max_seq_len in (1024, 131072, 512)


@pytest.mark.parametrize(('model', 'message'), [
  (GPT(V, 16, window=8), 'the model is not a GPT2LMHeadModel.*\n  window=8: it has 0'),
  (GPT(V, 16, kv_heads=2), 'kv_heads=2: it has 4'),
  (GPT(V, 16, positions='sinusoidal'), "positions='sinusoidal': it has 'rotary'"),
  (GPT(V, 16, experts=2), 'experts=2: it has 0'),
  (Pretraining(BERT(V, 16, first_position=2), next_sentence=True),
   'Pretraining.* of roberta: expected one of RobertaModel'),
  (BERT(V, 16, types=0), "DistilBertModel of .*\n  pooler_activation='tanh': it has 'relu'"),
  (Pretraining(BERT(V, 16, types=0, pooler_activation='relu'), next_sentence=True),
   'Pretraining.* of distilbert: expected one of DistilBertModel'),
  (MLP(3), 'model=MLP: expected one of GPT2LMHeadModel'),
])  # fmt: skip
def test_models_that_transformers_has_not(model, message, tmp_path):
  with pytest.raises(InputError, match=message):
    hub.save(tmp_path / 'out', model, {})


def test_what_is_not_written(written, tmp_path):
  folder, model, params = written('gpt2')
  with pytest.raises(InputError, match='is there already'):
    hub.save(folder, model, params)
  with pytest.raises(InputError, match="dtype 'int8' is not"):
    hub.save(tmp_path / 'out', model, params, dtype='int8')
  fewer = {k: v for k, v in params.items() if k != 'position'}
  with pytest.raises(InputError, match=r'missing  position \[16, 32\]'):
    hub.save(tmp_path / 'out', model, fewer)


def test_an_encoder_may_have_no_pooler(tmp_path):
  model = BERT(vocab_size=V, **SMALL)
  params = drawn(abstract(model))
  pooler = params.pop('pooler')
  hub.save(tmp_path / 'without', model, params)
  hub.save(tmp_path / 'with', model, params | {'pooler': pooler})
  assert stored(tmp_path / 'with').keys() - stored(tmp_path / 'without').keys() == {
    'pooler.dense.weight', 'pooler.dense.bias'
  }  # fmt: skip


def test_distilbert_alone_has_no_pooler(tmp_path):
  model = BERT(V, **SMALL, types=0, pooler_activation='relu')
  params = drawn(abstract(model))
  hub.save(tmp_path / 'without', model, params)
  pooler = {'kernel': np.ones((32, 32), np.float32), 'bias': np.ones(32, np.float32)}
  with pytest.raises(InputError, match='pooler/.*: a DistilBertModel .* has no such parameter'):
    hub.save(tmp_path / 'with', model, params | {'pooler': pooler})
  with pytest.raises(InputError, match=r'missing  pre_classifier.weight \[32, 32\], for encoder/p'):
    hub.load(tmp_path / 'without', abstract(Classifier(model)))


def test_rates_of_dropout_are_written(tmp_path):
  """A model that transformers trains further drops as many units as here."""
  model = MODELS['distilbert'](dropout=0.3)
  hub.save(tmp_path / 'out', model, drawn(abstract(model)))
  config = json.loads((tmp_path / 'out/config.json').read_text())
  rates = {k: v for k, v in config.items() if 'dropout' in k}
  assert rates == {
    'dropout': 0.3, 'qa_dropout': 0.3, 'seq_classif_dropout': 0.3, 'attention_dropout': 0.0
  }  # fmt: skip
  assert restore.model(str(tmp_path / 'out')).encoder.dropout == 0.3


def test_half_a_folder_is_none(written, tmp_path, monkeypatch):
  """A write that fails leaves no folder of that name; the next one begins anew."""
  _, model, params = written('gpt2')
  writes = []

  def fail(*arguments):
    writes.append(save_file(*arguments))
    if len(writes) == 2:
      raise OSError('No space left on device')

  monkeypatch.setattr(export, 'save_file', fail)
  with pytest.raises(OSError, match='No space'):
    hub.save(tmp_path / 'out', model, params, shard_bytes=20_000)
  assert not (tmp_path / 'out').exists()
  (tmp_path / 'out').mkdir()
  hub.save(tmp_path / 'out', model, params)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['out']
  assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == [
    'config.json', 'generation_config.json', 'model.safetensors'
  ]  # fmt: skip
  with safe_open(tmp_path / 'out/model.safetensors', 'np') as file:
    assert file.metadata() == {'format': 'pt'}


MEMORY = """
import sys
import jax, numpy as np
from bmx.adapt import hub, restore
from bmx.parallel import Layout, make_mesh, unbox
from bmx.parallel.sharding import param_pspecs, shardings

def status(key):
  line = next(x for x in open('/proc/self/status') if x.startswith(key))
  return int(line.split()[1]) * 1024

model = restore.model(sys.argv[1], scan=True)
init = lambda key: model.init(key, np.zeros((1, 8), np.int32))
boxed = jax.eval_shape(init, jax.random.PRNGKey(0))['params']
layout = Layout(make_mesh({'data': 1, 'fsdp': 8}))
at = shardings(param_pspecs(boxed, layout), layout.mesh)
place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
abstract = jax.tree.map(place, unbox(boxed), at)
open('/proc/self/clear_refs', 'w').write('5')
before = status('VmRSS')
found = hub.load(sys.argv[1], abstract)
print(status('VmHWM') - before, sum(x.nbytes for x in found.values()))
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_host_memory(tmp_path):
  """Beside the arrays there is never more than a tensor and a shard, and what XLA takes."""
  width, hidden, depth, tensor = 2048, 8192, 2, 64 * 2**20
  values = {
    'vocab_size': hidden, 'hidden_size': width, 'intermediate_size': hidden,
    'num_hidden_layers': depth, 'num_attention_heads': 16, 'max_position_embeddings': 64,
    'tie_word_embeddings': True,
  }  # fmt: skip
  described(tmp_path, 'LlamaForCausalLM', values)
  model = restore.model(str(tmp_path))
  shapes = {'embed_tokens': (hidden, width), 'norm': (width,)}
  for i in range(depth):
    layer = f'layers.{i}'
    norms = ('input_layernorm', 'post_attention_layernorm')
    shapes |= {f'{layer}.{name}': (width,) for name in norms}
    shapes |= {f'{layer}.self_attn.{x}_proj': (width, width) for x in 'qkvo'}
    shapes |= {f'{layer}.mlp.{name}_proj': (hidden, width) for name in ('gate', 'up')}
    shapes |= {f'{layer}.mlp.down_proj': (width, hidden)}
  assert math.prod(shapes['embed_tokens']) * 4 == tensor
  arrays = {f'model.{k}.weight': np.zeros(shape, np.float32) for k, shape in shapes.items()}
  save_file(arrays, tmp_path / 'model.safetensors')
  done = subprocess.run(
    [sys.executable, '-c', MEMORY, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
  )
  (tmp_path / 'model.safetensors').unlink()
  if 'clear_refs' in done.stderr:
    pytest.skip('peak memory cannot be measured here')
  assert not done.returncode, done.stderr
  growth, total = map(int, done.stdout.split())
  shard, runtime = depth * tensor // 8, 64 * 2**20
  assert growth - total < 1.2 * tensor + shard + runtime
  assert tree.count(abstract(model)) * 4 == total
