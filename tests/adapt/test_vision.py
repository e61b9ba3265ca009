"""Folders of image models: the same numbers as transformers, both ways."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bmx.adapt import hub, restore
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.tree import nested
from bmx.models.resnet import ResNet
from bmx.models.vit import ViT
from tests.models.weights import drawn, jit, shapes

VIT = {
  'hidden_size': 12, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 20,
  'image_size': 12, 'patch_size': 4, 'initializer_range': 0.2,
}  # fmt: skip
BASIC = {'embedding_size': 8, 'hidden_sizes': [8, 16], 'depths': [1, 2], 'layer_type': 'basic'}
DEEP = {'embedding_size': 8, 'hidden_sizes': [16, 32], 'depths': [1, 2]}
CLASSES = ('bird', 'cat', 'dog')
NAMES = {'id2label': dict(enumerate(CLASSES)), 'label2id': {k: i for i, k in enumerate(CLASSES)}}
# case -> (architecture, what its config says)
CASES = {
  'resnet': ('ResNetForImageClassification', DEEP | NAMES),
  'resnet basic': ('ResNetForImageClassification', BASIC | {'num_channels': 1}),
  'vit': ('ViTForImageClassification', VIT | NAMES),
  'vit without bias': (
    'ViTForImageClassification',
    VIT | {'qkv_bias': False, 'hidden_act': 'relu'},
  ),
  'deit': ('DeiTForImageClassification', VIT),
  'deit with teacher': ('DeiTForImageClassificationWithTeacher', VIT | NAMES),
  'clip': ('CLIPVisionModelWithProjection', VIT | {'projection_dim': 7}),
}
SCANNED = ('vit', 'deit with teacher', 'clip')


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
    for x in model.state_dict().values():
      if x.ndim == 1:  # biases, scales and running statistics that matter
        x += 0.1 * torch.randn_like(x).abs()
    folder = tmp_path_factory.mktemp('reference')
    model.save_pretrained(folder)
    return folder, model

  return make


def images(model, case):
  side = model.image_size if isinstance(model, ViT) else 40
  channels = CASES[case][1].get('num_channels', 3)
  return np.random.default_rng(0).normal(size=(2, side, side, channels)).astype(np.float32)


def loaded(folder, model, x, **options):
  """Variables of a model, read from a folder."""
  made = shapes(model, x)
  found = hub.load(folder, made['params'], **options)
  stats = hub.statistics(folder, {k: v for k, v in made.items() if k != 'params'})
  return {'params': nested(found), **nested(stats)}


def stored(folder):
  return {k: x.view(f'u{x.itemsize}') for k, x in load_file(folder / 'model.safetensors').items()}


@pytest.mark.parametrize(
  ('case', 'scan'), [(c, False) for c in CASES] + [(c, True) for c in SCANNED]
)
def test_outputs_are_those_of_transformers(reference, case, scan):
  torch = pytest.importorskip('torch')
  folder, theirs = reference(case)
  model = restore.model(str(folder), **({'scan': True} if scan else {}))
  x = images(model, case)
  found = jit(model.apply)(loaded(folder, model, x), x)
  with torch.no_grad():
    out = theirs(torch.tensor(x.transpose(0, 3, 1, 2)))
  expected = out['image_embeds' if case == 'clip' else 'logits'].numpy()
  assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize('case', CASES)
def test_a_folder_is_written_as_transformers_wrote_it(reference, case, tmp_path):
  """Bit for bit, with the same architecture and sizes; transformers misses and spares nothing."""
  transformers = pytest.importorskip('transformers')
  folder, theirs = reference(case)
  model = restore.model(str(folder))
  given = loaded(folder, model, images(model, case))
  names = hub.labels(folder)
  hub.save(
    tmp_path / 'out', model, given['params'], labels=names, statistics=given.get('batch_stats')
  )
  ours, expected = stored(tmp_path / 'out'), stored(folder)
  assert ours.keys() == expected.keys()
  for name, x in ours.items():
    np.testing.assert_array_equal(x, expected[name], err_msg=name)
  kind = getattr(transformers, CASES[case][0])
  again, report = kind.from_pretrained(tmp_path / 'out', output_loading_info=True)
  assert not any(report.values()), report
  a, b = again.config.to_dict(), theirs.config.to_dict()
  free = ('initializer_range', 'transformers_version', '_name_or_path', 'dtype')
  assert {k: v for k, v in a.items() if k not in free} == {k: b[k] for k in a if k not in free}
  assert not names or hub.labels(tmp_path / 'out') == CLASSES


@pytest.mark.parametrize('case', ['resnet', 'vit'])
def test_a_new_head_and_a_body_alone(reference, case, tmp_path):
  """`reinit=head` reads all but the head, of a classifier or of a bare model with a pooler."""
  transformers = pytest.importorskip('transformers')
  folder, theirs = reference(case)
  bare = {'resnet': transformers.ResNetModel, 'vit': transformers.ViTModel}[case]
  bare(theirs.config).save_pretrained(tmp_path / 'bare')  # a ViT's has a pooler
  for path in (folder, tmp_path / 'bare'):
    model = restore.model(str(path), num_outputs=5)
    made = shapes(model, images(model, case))['params']
    found = hub.load(path, made, reinit='head')
    assert tree.named(made).keys() - found.keys() == {'head/kernel', 'head/bias'}
    with pytest.raises(InputError, match=r'classifier\S*weight'):
      hub.load(path, made)


def test_positions_of_another_size(reference):
  """Read for images of 20 pixels, outputs are those of transformers' interpolated encoding."""
  torch = pytest.importorskip('torch')
  folder, theirs = reference('vit')
  model = restore.model(str(folder), image_size=20)
  x = images(model, 'vit')
  found = jit(model.apply)(loaded(folder, model, x), x)
  with torch.no_grad():
    out = theirs(torch.tensor(x.transpose(0, 3, 1, 2)), interpolate_pos_encoding=True)
  expected = out.logits.numpy()
  assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_batch_norm_and_group_norm_do_not_read_each_other(reference):
  folder, _ = reference('resnet')
  model = restore.model(str(folder), norm='group', groups=2)
  with pytest.raises(InputError, match='group_norm/scale'):
    hub.load(folder, shapes(model, images(model, 'resnet'))['params'])


def test_missing_statistics_are_named(reference, tmp_path):
  folder, _ = reference('resnet')
  tensors = load_file(folder / 'model.safetensors')
  gone = 'resnet.embedder.embedder.normalization.running_var'
  del tensors[gone]
  save_file(tensors, tmp_path / 'model.safetensors', {'format': 'pt'})
  (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
  model = restore.model(str(tmp_path))
  with pytest.raises(InputError, match=rf'missing  {gone} \[8\], for stem/norm/var'):
    loaded(tmp_path, model, images(model, 'resnet'))


@pytest.mark.parametrize(('case', 'change', 'message'), [
  ('resnet', {'hidden_act': 'gelu'}, r"hidden_act='gelu': supported is 'relu'"),
  ('resnet', {'downsample_in_bottleneck': True}, 'downsample_in_bottleneck=True: supported is Fal'),
  ('resnet', {'downsample_in_first_stage': True}, 'downsample_in_first_stage=True'),
  ('resnet', {'hidden_sizes': [16, 48]}, r'hidden_sizes=\[16, 48\]: expected .* twice the one bef'),
  ('resnet', {'hidden_sizes': [18, 36]}, 'multiples of 4'),
  ('resnet', {'layer_type': 'wide'}, "layer_type='wide': supported are 'basic', 'bottleneck'"),
  ('resnet', {'depths': [2, 0]}, r'depths=\[2, 0\]: expected numbers of blocks'),
  ('resnet', {'embedding_size': 'x'}, "embedding_size='x': expected int"),
  ('vit', {'hidden_act': 'mish'}, "hidden_act='mish': supported are"),
  ('vit', {'image_size': [12, 16]}, r'image_size=\[12, 16\]: expected int'),
  ('vit', {'architectures': ['ViTForMaskedImageModeling']}, 'is not one of .*ViTForImageClassific'),
])  # fmt: skip
def test_what_is_not_reproduced_is_refused(case, change, message, tmp_path):
  name, values = CASES[case]
  config = {'architectures': [name], **values, **change}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(InputError, match=message):
    hub.part(tmp_path)


@pytest.mark.parametrize(('model', 'message'), [
  (ResNet(3, depth=18, stem='small'), "stem='small': it has 'imagenet'"),
  (ResNet(3, depth=18, norm='group'), "norm='group': it has 'batch'"),
  (ViT(3, layer_scale=0.1), 'layer_scale=0.1: it has 0.0'),
  (ViT(3, pool='mean'), "pool='mean': it has 'class'"),
  (ViT(3, positions='sincos'), "positions='sincos': it has 'learned'"),
])  # fmt: skip
def test_what_transformers_lacks_is_refused(model, message, tmp_path):
  with pytest.raises(InputError, match=message):
    hub.save(tmp_path / 'out', model, {})


def test_statistics_are_part_of_a_resnet(tmp_path):
  model = ResNet(3, stages=(1,), features=4)
  given = drawn(shapes(model, jnp.zeros((1, 32, 32, 3))))
  with pytest.raises(InputError, match=r'missing  stage_0/block_0/layer_0/norm/mean'):
    hub.save(tmp_path / 'out', model, given['params'])
  hub.save(tmp_path / 'out', model, given['params'], statistics=given['batch_stats'])
  found = loaded(tmp_path / 'out', model, jnp.zeros((1, 32, 32, 3)))
  jax.tree.map(np.testing.assert_array_equal, found, given)
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['num_channels'] == 3 and config['hidden_sizes'] == [4]
