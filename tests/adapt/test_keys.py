"""Every key of every family's config: another value gives transformers' logits, or is refused.

Cases are generated: each key that the config class of transformers knows, and some that older
versions knew, with other values of its type, and left out.
"""

import functools
import json

import jax
import numpy as np
import pytest

from bmx.adapt import hub, restore
from bmx.adapt.configs import translate
from bmx.core.errors import InputError
from bmx.core.tree import nested
from bmx.parallel import unbox

SIZES = {
  'vocab_size': 31, 'hidden_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 4,
  'intermediate_size': 24, 'max_position_embeddings': 12, 'initializer_range': 0.3,
}  # fmt: skip
LLAMA = SIZES | {'num_key_value_heads': 2}
ENCODER = SIZES | {'type_vocab_size': 2, 'pad_token_id': 1}
FAMILIES = {
  'GPT2LMHeadModel': {
    'vocab_size': 31, 'n_embd': 16, 'n_layer': 1, 'n_head': 4, 'n_positions': 12,
    'initializer_range': 0.3, 'bos_token_id': None, 'eos_token_id': None,
  },
  'LlamaForCausalLM': LLAMA,
  'Qwen2ForCausalLM': LLAMA,
  'Qwen3ForCausalLM': LLAMA | {'head_dim': 8},
  'MistralForCausalLM': LLAMA | {'sliding_window': 4},
  'BertForMaskedLM': ENCODER,
  'RobertaForMaskedLM': ENCODER,
  'DistilBertForMaskedLM': {
    'vocab_size': 31, 'dim': 16, 'n_layers': 1, 'n_heads': 4, 'hidden_dim': 24,
    'max_position_embeddings': 12, 'initializer_range': 0.3, 'pad_token_id': 1,
  },
}  # fmt: skip
# Keys that config.json files hold although the config class lacks them.
OLD = {
  'position_embedding_type': ('relative_key', 'relative_key_query'),
  'rope_theta': (70.0,),
  'rope_scaling': ({'type': 'linear', 'factor': 3.0}, {'type': 'dynamic', 'factor': 3.0}),
  'original_max_position_embeddings': (5,),
  'partial_rotary_factor': (0.5,),
  'pruned_heads': ({'0': [1]},),
  'sliding_window': (3,),
  'quantization_config': ({'quant_method': 'awq', 'bits': 4},),
  'n_ctx': (7,),
  'head_dim': (6,),
  'attention_bias': (True,),
  'mlp_bias': (True,),
  'num_labels': (3,),
  'hidden_size': (32,),
  'num_hidden_layers': (2,),
  'num_attention_heads': (8,),
  'max_position_embeddings': (24,),
  'tie_weights_': (True, False),
}
ACTIVATIONS = ('relu', 'gelu', 'gelu_new', 'gelu_pytorch_tanh', 'silu', 'mish', 'tanh', 'relu2')
# Keys that choose the output's form, the weights' type or files, or name the model.
FORM = {
  'architectures', 'model_type', 'dtype', 'torch_dtype', 'transformers_version', 'return_dict',
  'output_hidden_states', 'output_attentions', 'use_cache', '_name_or_path', 'problem_type',
  'id2label', 'label2id', 'initializer_range', 'attn_implementation',
}  # fmt: skip
LEFT_OUT = object()
TOKENS = np.random.default_rng(0).integers(3, 31, (2, 9)).astype(np.int32)


def others(key, value):
  """Values that a key may have instead."""
  if key in ('hidden_act', 'activation_function', 'activation'):
    return [x for x in ACTIVATIONS if x != value]
  if key == 'rope_parameters':
    return [
      {'rope_type': 'default', 'rope_theta': 70.0},
      {'rope_type': 'linear', 'rope_theta': 70.0, 'factor': 3.0},
      {'rope_type': 'yarn', 'rope_theta': 70.0, 'factor': 3.0},
      {'rope_type': 'dynamic', 'rope_theta': 70.0, 'factor': 3.0},
    ]
  if isinstance(value, bool):
    return [not value]
  if isinstance(value, int):
    return [2 * value, value + 1, 1]
  if isinstance(value, float):
    return [0.25, 3 * value]
  if value is None:
    return [1, 3, True]
  if key == 'layer_types':
    return [['sliding_attention']]
  return []


def changes(name, base):
  keys = {k: v for k, v in base.items() if k not in FORM}
  for key, value in keys.items():
    for other in others(key, value):
      yield {key: other}
    yield {key: LEFT_OUT}
  for key, values in OLD.items():
    for value in values:
      if key not in keys or value not in others(key, keys[key]):
        yield {key: value}


@functools.cache
def library():
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  transformers.logging.set_verbosity(transformers.logging.CRITICAL)
  return transformers


def theirs(name, config):
  """The model of transformers, or None if transformers itself refuses the config."""
  torch = pytest.importorskip('torch')
  kind = getattr(library(), name)
  torch.manual_seed(0)
  try:
    return kind(kind.config_class.from_dict(dict(config))).eval()
  except Exception:  # transformers raises many kinds
    return None


def their_logits(model):
  torch = pytest.importorskip('torch')
  with torch.no_grad():
    try:
      return model(torch.tensor(TOKENS).long(), return_dict=True)['logits'].numpy()
    except Exception:  # a length or a mask that transformers cannot compute
      return None


def our_logits(folder):
  model = restore.model(str(folder))
  shape = jax.eval_shape(lambda key: model.init(key, TOKENS), jax.random.PRNGKey(0))
  params = nested(hub.load(folder, unbox(shape)['params']))
  found = jax.jit(model.apply)({'params': params}, TOKENS)
  return np.asarray(found[0] if isinstance(found, tuple) else found)


def part_of(config):
  """What bmx builds, without rates of dropout; None if it refuses the config."""
  try:
    part = translate(config)
  except InputError:
    return None
  body = part.get('encoder', part)
  return {**part, 'encoder': None}, {k: v for k, v in body.items() if k != 'dropout'}


def write(folder, config, model):
  from safetensors.torch import save_file

  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(config))
  state = dict(model.state_dict())
  for copy in model.all_tied_weights_keys if model.config.tie_word_embeddings else ():
    state.pop(copy, None)
  save_file({k: x.contiguous() for k, x in state.items()}, folder / 'model.safetensors')


# Those whose keys others have, too, and GPT-2's, which are most.
NIGHTLY = (
  'GPT2LMHeadModel',
  'Qwen2ForCausalLM',
  'Qwen3ForCausalLM',
  'MistralForCausalLM',
  'RobertaForMaskedLM',
  'DistilBertForMaskedLM',
)


def walk(tmp_path, name, some=None):
  """Compares bmx with transformers for each change of a key (all of them, or `some`)."""
  kind = getattr(library(), name)
  base = kind.config_class(**FAMILIES[name]).to_dict() | {'architectures': [name]}
  same, part = theirs(name, base), part_of(base)
  assert same is not None and part is not None
  weights = same.state_dict()
  expected, shapes = their_logits(same), {k: x.shape for k, x in weights.items()}
  wrong, counts = [], {'equal': 0, 'refused': 0, 'without effect': 0, 'invalid': 0}
  for i, change in enumerate(some or changes(name, base)):
    config = {k: v for k, v in (base | change).items() if v is not LEFT_OUT}
    found = part_of(config)
    if found is None:
      counts['refused'] += 1
      continue
    model = theirs(name, config)
    if model is None:
      counts['invalid'] += 1
      continue
    if found == part and {k: x.shape for k, x in model.state_dict().items()} == shapes:
      model.load_state_dict(weights)
      logits = their_logits(model)
      bad = logits is not None and np.abs(logits - expected).max() > 1e-5
      wrong += [f'{change}: ignored'] if bad else []
      counts['without effect'] += 1
      continue
    logits = their_logits(model)
    if logits is None:
      continue
    write(tmp_path / str(i), config, model)
    try:
      ours = our_logits(tmp_path / str(i))
    except InputError:
      counts['refused'] += 1
      continue
    if ours.shape != logits.shape or np.abs(ours - logits).max() > 1e-4:
      wrong.append(f'{change}: other logits')
    counts['equal'] += 1
  assert not wrong, '\n'.join(wrong)
  return counts


@pytest.mark.parametrize(
  'name', [pytest.param(x, marks=pytest.mark.nightly) if x in NIGHTLY else x for x in FAMILIES]
)
def test_another_value_of_a_key(tmp_path, name):
  counts = walk(tmp_path, name)
  assert counts['equal'] > 8 and counts['refused'] > 5


def test_keys_of_distilbert(tmp_path):
  some = [{'activation': 'relu'}, {'sinusoidal_pos_embds': True}, {'qa_dropout': 0.3},
          {'tie_weights_': False}, {'tie_word_embeddings': False}, {'hidden_size': 32}]  # fmt: skip
  counts = walk(tmp_path, 'DistilBertForMaskedLM', some)
  assert counts == {'equal': 2, 'refused': 2, 'without effect': 2, 'invalid': 0}


def test_a_key_that_replaces_another(tmp_path):
  counts = walk(tmp_path, 'GPT2LMHeadModel', [{'hidden_size': 32, 'max_position_embeddings': 24}])
  assert counts['equal'] == 1
