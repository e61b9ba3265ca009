"""Folders of PEFT: the same logits as `peft`, both ways, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment, modes
from bmx.adapt import hub, peft, peft_export
from bmx.adapt.adalora import AdaLoRA
from bmx.adapt.lora import LoRA
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.tasks.encoder import TextClassification
from bmx.tasks.language import CausalLM
from bmx.train.state import variables_of
from tests.adapt.test_lora import NOISE, tokens
from tests.conftest import ROOT
from tests.models.weights import drawn

pytestmark = pytest.mark.filterwarnings('ignore:.is_gradient_checkpointing:FutureWarning')
V = 256
SIZES = {
  'vocab_size': V, 'hidden_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 4,
  'intermediate_size': 40, 'max_position_embeddings': 16, 'initializer_range': 0.2,
}  # fmt: skip
GPT2 = {'vocab_size': V, 'n_embd': 24, 'n_layer': 2, 'n_head': 4, 'n_positions': 16,
        'initializer_range': 0.2, 'bos_token_id': None, 'eos_token_id': None}  # fmt: skip
# case -> (architecture, its config, targets of bmx, modules of PEFT, what trains whole)
CASES = {
  'llama': ('LlamaForCausalLM', SIZES | {'num_key_value_heads': 2},
            'query|value|attention/out|down', ['q_proj', 'v_proj', 'o_proj', 'down_proj'], ''),
  'bert': ('BertForSequenceClassification', SIZES | {'num_labels': 3}, 'query|attention/out',
           ['query', 'attention.output.dense'], '^head'),
  'gpt2': ('GPT2LMHeadModel', GPT2, 'query|key|value|feed_forward',
           ['c_attn', 'c_fc', 'mlp.c_proj'], ''),
}  # fmt: skip


@pytest.fixture(scope='module')
def reference():
  torch = pytest.importorskip('torch', reason='the extra `reference` is not installed')
  return torch, pytest.importorskip('transformers'), pytest.importorskip('peft')


@pytest.fixture(scope='module')
def bases(reference, tmp_path_factory):
  """Architecture -> a folder that transformers wrote."""
  torch, transformers, _ = reference
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  folders = {}
  for name, values, *_ in CASES.values():
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    folders[name] = tmp_path_factory.mktemp('base') / name
    kind(kind.config_class(**values)).save_pretrained(folders[name])
  return folders


def task_of(folder, targets, train, **words):
  part = hub.part(folder)
  small = {'dropout': 0.0}
  if 'encoder' in part:
    part['encoder'] |= small | {'scan': True}
  else:
    part |= small
  model = recipes.build(part, 'model')
  inner = TextClassification(model) if 'encoder' in part else CausalLM(model)
  return LoRA(inner, rank=3, alpha=6.0, targets=targets, train=train, **words)


def loaded(task, folder, seed=None):
  """Variables with the weights of a folder; adapters drawn if there is a seed."""
  abstract = jax.eval_shape(lambda: unbox(task.init(NOISE, tokens(2))))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  placed = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
  plain = jax.tree.map(placed, jax.eval_shape(task.merged_params, abstract))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)
  taken = dict(task.take(zeros, tree.nested(hub.load(folder, plain))))
  if seed is not None:
    adapters = drawn(taken['params']['adapters'], seed)
    taken['params'] = {**taken['params'], 'adapters': adapters}
  return taken, jax.tree.map(placed, abstract['params'])


def logits(task, variables):
  layout = Layout(make_mesh({}, jax.devices()[:1]))
  run = lambda v: task.forward(v, tokens(2), NOISE, train=False, method='logits')[0].value
  return np.asarray(jit(run, layout)(variables))


def theirs(reference, base, adapter, name):
  torch, transformers, library = reference
  model = getattr(transformers, name).from_pretrained(base)
  model = library.PeftModel.from_pretrained(model, str(adapter)).eval()
  with torch.no_grad():
    return model(torch.tensor(tokens(2)['tokens']).long()).logits.numpy()


def written(reference, base, adapter, name, modules, train):
  """A folder that PEFT itself wrote, with adapters that matter."""
  torch, transformers, library = reference
  torch.manual_seed(1)
  config = library.LoraConfig(
    r=3, lora_alpha=6, target_modules=modules, modules_to_save=['classifier'] if train else None,
    fan_in_fan_out=name.startswith('GPT2'),
  )  # fmt: skip
  model = library.get_peft_model(getattr(transformers, name).from_pretrained(base), config)
  for key, parameter in model.named_parameters():
    if 'lora_' in key or 'modules_to_save' in key:
      parameter.data = 0.1 * torch.randn_like(parameter)
  model.save_pretrained(str(adapter))


@pytest.mark.parametrize('case', CASES)
def test_parity_with_peft(case, reference, bases, tmp_path):
  name, _, targets, modules, train = CASES[case]
  base, task = bases[name], task_of(bases[name], targets, train)
  # Out: PEFT reads what bmx wrote.
  variables, abstract = loaded(task, base, seed=1)
  peft_export.save(tmp_path / 'ours', task, variables, str(base))
  expected = logits(task, variables)
  found = theirs(reference, base, tmp_path / 'ours', name)
  np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
  config = json.loads((tmp_path / 'ours/adapter_config.json').read_text())
  assert config['r'] == (9 if case == 'gpt2' else 3)
  assert set(config['target_modules']) == {*modules}
  # In: bmx reads what PEFT wrote.
  written(reference, base, tmp_path / 'theirs', name, modules, train)
  given = peft.load(str(tmp_path / 'theirs'), task, abstract)
  plain, _ = loaded(task, base)
  read = tree.nested(tree.named(plain) | given)
  expected = theirs(reference, base, tmp_path / 'theirs', name)
  found = logits(task, read)
  np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
  assert np.abs(found - logits(task, plain)).max() > 1e-2


def test_a_run_begins_with_a_folder_of_peft(reference, bases, tmp_path, capsys):
  """`init.path` is a folder of transformers, `init.adapter` one of PEFT; `generate` reads both."""
  name, _, targets, modules, _ = CASES['llama']
  base = bases[name]
  written(reference, base, tmp_path / 'theirs', name, modules, '')
  c, _ = recipes.load(str(ROOT / 'configs/gpt_char.py:tiny'), ['length=16', 'mesh.data=8'])
  with c.unlocked():
    c.eval, model = {}, {'call': 'bmx.adapt.restore:model', 'path': str(base)}
    inner = {'call': 'bmx.tasks.language:CausalLM', 'model': model}
    c.task = {'call': 'bmx.adapt.lora:LoRA', 'inner': inner, 'rank': 3, 'alpha': 6.0,
              'targets': targets}  # fmt: skip
    c.init.path, c.init.adapter = str(base), str(tmp_path / 'theirs')
    c.generate.update(max_new_tokens=8, temperature=0.0)
  x = experiment.build(c)
  state = x.init()
  expected = theirs(reference, base, tmp_path / 'theirs', name)
  found = logits(x.task, jax.device_get(variables_of(state)))
  np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
  torch, transformers, library = reference
  model = library.PeftModel.from_pretrained(
    getattr(transformers, name).from_pretrained(base), str(tmp_path / 'theirs')
  ).eval()
  ids = list(b'def ')
  for _ in range(8):
    with torch.no_grad():
      ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
  modes.run('generate', modes.Request(c, 'run', prompts=('def ',)))
  text = bytes(ids).decode('utf-8', 'replace')
  assert capsys.readouterr().out.rstrip('\n') == text.rstrip('\n')


def test_a_folder_of_bmx_names_its_base(reference, bases, tmp_path, caplog):
  name, _, targets, modules, train = CASES['bert']
  base, task = bases[name], task_of(bases[name], targets, train)
  variables, abstract = loaded(task, base, seed=1)
  peft_export.save(tmp_path / 'ours', task, variables)
  given = peft.load(str(tmp_path / 'ours'), task, abstract)
  for key, leaf in given.items():
    np.testing.assert_array_equal(leaf, tree.named(variables)[key])
  peft.check_base(str(tmp_path / 'ours'), variables)
  other = {**variables, 'frozen': jax.tree.map(lambda x: x + 1e-3, variables['frozen'])}
  with pytest.raises(InputError, match='expected adapters of the base'):
    peft.check_base(str(tmp_path / 'ours'), other)
  written(reference, base, tmp_path / 'theirs', name, modules, train)
  peft.check_base(str(tmp_path / 'theirs'), other)
  assert 'names no digest of its base' in caplog.text


REFUSED = {
  'dora': ({'use_dora': True}, {}, 'use_dora=True: not supported'),
  'bias': ({'bias': 'all'}, {}, "bias='all': supported is 'none'"),
  'ranks': ({'rank_pattern': {'q_proj': 2}}, {}, r"rank_pattern=\{'q_proj': 2\}: not supported"),
  'kind': ({'peft_type': 'ADALORA'}, {}, "peft_type='ADALORA': supported is 'LORA'"),
  'base': ({'init_lora_weights': 'pissa'}, {}, "init_lora_weights='pissa'"),
  'rank': ({'r': 4}, {}, 'task.rank=3, task.alpha=6.0: expected rank=4, alpha=6.0'),
  'scale': ({'use_rslora': True}, {}, 'rslora=True'),
  'targets': ({}, {'targets': 'query'}, r'(?s)extra .*output\.dense\.lora_A'),
  'more': (
    {},
    {'targets': 'query|key|attention/out'},
    r'(?s)missing .*key\.lora_A\.weight \[3, 32',
  ),
}


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
  """A task and a folder of its adapters, without other reference."""
  from tests.adapt.test_lora import bert, made

  task = LoRA(bert(), rank=3, alpha=6.0, targets='query|attention/out')
  folder = tmp_path_factory.mktemp('peft') / 'adapter'
  peft_export.save(folder, task, made(task, tokens(2)))
  return task, folder


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_refused(name, encoder, tmp_path):
  task, folder = encoder
  config, words, said = REFUSED[name]
  stored = json.loads((folder / 'adapter_config.json').read_text())
  (tmp_path / 'adapter_config.json').write_text(json.dumps(stored | config))
  (tmp_path / 'adapter_model.safetensors').write_bytes(
    (folder / 'adapter_model.safetensors').read_bytes()
  )
  other = LoRA(task.inner, **{'rank': 3, 'alpha': 6.0, 'targets': task.targets} | words)
  abstract = jax.eval_shape(lambda: unbox(other.init(NOISE, tokens(2))))
  with pytest.raises(InputError, match=said):
    peft.load(str(tmp_path), other, abstract['params'])


def test_a_joined_tensor_needs_all_of_its_parts(reference, bases, tmp_path):
  """GPT-2 joins query, key and value: adapters of one of them cannot hold those of all."""
  name, _, _, modules, _ = CASES['gpt2']
  written(reference, bases[name], tmp_path / 'theirs', name, ['c_attn'], '')
  task = task_of(bases[name], 'query|value', '')
  _, abstract = loaded(task, bases[name])
  with pytest.raises(InputError, match=r'(?s)c_attn.*query, key and value'):
    peft.load(str(tmp_path / 'theirs'), task, abstract)


def test_adalora_is_written_as_lora(reference, bases, tmp_path):
  name, _, _, _, _ = CASES['llama']
  base = bases[name]
  inner = task_of(base, '', '').inner
  task = AdaLoRA(inner, rank=2, init_rank=4, alpha=6.0, targets='query')
  variables, _ = loaded(task, base, seed=2)
  peft_export.save(tmp_path / 'ours', task, variables)
  expected = logits(task, variables)
  found = theirs(reference, base, tmp_path / 'ours', name)
  np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
