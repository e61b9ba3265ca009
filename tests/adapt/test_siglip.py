"""Folders of SigLIP: the same numbers as transformers, both ways."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from bmx.adapt import hub, peft_export, preprocessor, restore
from bmx.adapt.lora import LoRA
from bmx.core.errors import InputError
from bmx.core.tree import nested
from bmx.data.images.captions import captions
from bmx.data.images.pairs import encode_captions
from bmx.data.text.tokenizer import Subwords
from bmx.models.clip import CLIP, TextTower
from bmx.models.vit import ViT
from bmx.parallel import unbox
from bmx.tasks.contrastive import Contrastive
from bmx.train.evaluate import eval_noise
from tests.models.weights import drawn, jit, shapes

TEXT = {
  'vocab_size': 50, 'hidden_size': 16, 'intermediate_size': 24, 'num_hidden_layers': 2,
  'num_attention_heads': 2, 'max_position_embeddings': 9, 'projection_size': 12,
}  # fmt: skip
VISION = {
  'hidden_size': 12, 'intermediate_size': 20, 'num_hidden_layers': 2, 'num_attention_heads': 3,
  'image_size': 12, 'patch_size': 4,
}  # fmt: skip
OURS = CLIP(
  ViT(12, 12, 4, width=12, depth=2, heads=2, pool='attention', project=False, activation='gelu'),
  TextTower(
    50, 9, 12, end_token=-1, width=16, depth=2, heads=2, causal=False, pool='last', head_bias=True,
    activation='gelu', eps=1e-6,
  ),
  bias=True,
)  # fmt: skip


def random_weights(torch, model):
  """Draws every parameter, so that no bias is zero and no scale is one."""
  torch.manual_seed(0)
  for x in model.state_dict().values():
    x.copy_(0.3 * torch.randn_like(x))
  return model.eval()


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
  """A folder that transformers wrote, and its model."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
  model = random_weights(torch, transformers.SiglipModel(config))
  folder = tmp_path_factory.mktemp('reference')
  model.save_pretrained(folder)
  return folder, model


def inputs():
  random = np.random.default_rng(0)
  image = random.normal(size=(3, 12, 12, 3)).astype(np.float32)
  tokens = random.integers(2, 50, (3, 9))
  for row, end in zip(tokens, (3, 8, 5), strict=True):
    row[end:] = 1  # the end of a text is its padding, too
  return image, tokens.astype(np.int32)


def torch_inputs(torch):
  image, tokens = inputs()
  return {'input_ids': torch.tensor(tokens),
          'pixel_values': torch.tensor(image.transpose(0, 3, 1, 2))}  # fmt: skip


def read(folder, model, *given):
  found = hub.load(folder, shapes(model, *given)['params'])
  return {'params': nested(found)}


@pytest.mark.parametrize('scan', [False, True])
def test_logits_and_loss_are_those_of_transformers(reference, scan):
  torch = pytest.importorskip('torch')
  folder, theirs = reference
  model = restore.model(str(folder), image={'scan': scan}, text={'scan': scan})
  out = jit(model.apply)(read(folder, model, *inputs()), *inputs())
  with torch.no_grad():
    expected = theirs(**torch_inputs(torch), return_loss=True)
  logits = out.scale * out.image @ out.text.T + out.bias
  assert np.abs(logits - expected.logits_per_image.numpy()).max() <= 1e-4
  batch = {'weights': np.ones(3, np.float32), 'caption': np.arange(3)}
  total, count, _ = Contrastive(model, 'sigmoid').score(out, batch, train=True)
  assert float(total / count) == pytest.approx(float(expected.loss), 1e-5)


def stored(folder):
  return {k: x.view(f'u{x.itemsize}') for k, x in load_file(folder / 'model.safetensors').items()}


def assert_same_bits(folder, other):
  ours, expected = stored(folder), stored(other)
  assert ours.keys() == expected.keys()
  for name, x in ours.items():
    np.testing.assert_array_equal(x, expected[name], err_msg=name)


def test_a_folder_is_written_as_transformers_wrote_it(reference, tmp_path):
  """Bit for bit, with the same sizes; transformers misses and spares nothing."""
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  folder, theirs = reference
  model = restore.model(str(folder))
  hub.save(tmp_path / 'out', model, read(folder, model, *inputs())['params'])
  assert_same_bits(tmp_path / 'out', folder)
  again, report = transformers.SiglipModel.from_pretrained(
    tmp_path / 'out', output_loading_info=True
  )
  assert not any(report.values()), report
  with torch.no_grad():
    ours, expected = (m(**torch_inputs(torch)).logits_per_image for m in (again, theirs))
  assert (ours - expected).abs().max() <= 1e-6
  a, b = again.config.to_dict(), theirs.config.to_dict()
  free = ('bos_token_id', 'pad_token_id', 'eos_token_id', 'dtype')
  for key in ('text_config', 'vision_config'):
    assert {k: v for k, v in a[key].items() if k not in free} == {
      k: v for k, v in b[key].items() if k not in free
    }


def test_image_tower_alone(tmp_path):
  """SiglipVisionModel as a ViT: its pooled state, and the same bits back."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  config = transformers.SiglipVisionConfig(**VISION)
  theirs = random_weights(torch, transformers.SiglipVisionModel(config))
  theirs.save_pretrained(tmp_path / 'in')
  model = restore.model(str(tmp_path / 'in'))
  image, _ = inputs()
  given = read(tmp_path / 'in', model, image)
  with torch.no_grad():
    expected = theirs(torch_inputs(torch)['pixel_values']).pooler_output.numpy()
  assert np.abs(jit(model.apply)(given, image) - expected).max() <= 1e-4
  hub.save(tmp_path / 'out', model, given['params'])
  assert_same_bits(tmp_path / 'out', tmp_path / 'in')


CONFIG = {'architectures': ['SiglipModel'], 'text_config': TEXT, 'vision_config': VISION}


@pytest.mark.parametrize(('change', 'message'), [
  ({'architectures': ['Siglip2Model']}, r"architectures=\['Siglip2Model'\] is not one of"),
  ({'vision_config': VISION | {'vision_use_head': False}}, 'vision_config.vision_use_head=False'),
  ({'vision_config': VISION | {'image_size': [12, 16]}}, r'vision_config.image_size=\[12, 16\]'),
  ({'text_config': TEXT | {'projection_size': 'x'}}, "text_config.projection_size='x': expected"),
  ({'text_config': TEXT | {'hidden_act': 'mish'}}, "text_config.hidden_act='mish': supported are"),
])  # fmt: skip
def test_what_is_not_reproduced_is_refused(change, message, tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(CONFIG | change))
  with pytest.raises(InputError, match=message):
    hub.part(tmp_path)


def test_towers_of_other_sizes_are_refused(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(CONFIG | {'text_config': TEXT | {
    'projection_size': 13}}))  # fmt: skip
  model = restore.model(str(tmp_path))
  with pytest.raises(InputError, match='image.num_outputs=12, text.num_outputs=13: expected one'):
    shapes(model, *inputs())


def test_published_files_of_few_keys(tmp_path):
  """A missing key has the value of transformers; ids beyond the vocabulary are not read."""
  config = {'architectures': ['SiglipModel'], 'vision_config': None,
            'text_config': {'vocab_size': 32_000, 'eos_token_id': 49_407}}  # fmt: skip
  (tmp_path / 'config.json').write_text(json.dumps(config))
  model = restore.model(str(tmp_path))
  given = jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 64), jnp.int32)
  sizes = jax.tree.leaves(jax.tree.map(lambda x: x.size, shapes(model, *given)['params']))
  assert sum(sizes) == 203_155_970  # that of google/siglip-base-patch16-224


@pytest.mark.parametrize(('model', 'message'), [
  (OURS.clone(bias=False), 'bias=False: it has True'),
  (OURS.clone(text=OURS.text.clone(causal=True, pool='end')), 'text.causal=True: it has False'),
  (OURS.clone(image=OURS.image.clone(project=True)), 'image.project=True: it has False'),
])  # fmt: skip
def test_what_transformers_lacks_is_refused(model, message, tmp_path):
  with pytest.raises(InputError, match=message):
    hub.save(tmp_path / 'out', model, {})


def test_an_adapter_that_peft_lacks_is_refused(tmp_path):
  """Query, key and value of the pooling are one tensor, which no module of its own holds."""
  task = LoRA(Contrastive(OURS, 'sigmoid'), rank=2, targets='pooling/attention/query')
  batch = dict(zip(('image', 'tokens'), inputs(), strict=True)) | {
    'weights': np.ones(3, np.float32)
  }
  variables = unbox(jit(lambda: task.init(eval_noise(), batch))())
  with pytest.raises(InputError, match='PEFT adapts modules, and .*in_proj_weight is a part'):
    peft_export.save(tmp_path / 'out', task, variables)


def test_a_model_of_ones_own_is_written_and_read(tmp_path):
  """No end of text is written to the folder, as the tower does not read it."""
  model = OURS.clone(text=OURS.text.clone(end_token=1))
  given = drawn(shapes(model, *map(jnp.asarray, inputs())))
  hub.save(tmp_path / 'out', model, given['params'])
  found = read(tmp_path / 'out', model, *inputs())['params']
  jax.tree.map(np.testing.assert_array_equal, found, given['params'])


def test_images_are_those_of_the_processor(tmp_path):
  """Pixels equal those of SiglipImageProcessor; data that crop, as CLIP's, are named."""
  transformers = pytest.importorskip('transformers')
  pytest.importorskip('torch')
  from PIL import Image

  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
  Image.fromarray(pixels).save(tmp_path / '0.png')
  (tmp_path / 'captions.jsonl').write_text(json.dumps({'file': '0.png', 'caption': 'a cat'}))
  words = {'tokenizer': ending(), 'size': 12, 'length': 9, 'train': False}
  half = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
  data = captions(str(tmp_path), stretch=True, **half, **words)
  process = transformers.SiglipImageProcessorPil(size={'height': 12, 'width': 12})
  wanted = process(Image.fromarray(pixels), return_tensors='np')['pixel_values'][0]
  ours = data.rows(np.zeros(1, int), np.zeros(1, int))['image'][0]
  assert np.abs(ours - wanted.transpose(1, 2, 0)).max() <= 1e-5
  process.save_pretrained(tmp_path)
  assert not preprocessor.check(str(tmp_path), False, data.metadata, data.spec)
  other = captions(str(tmp_path), **words)
  lines = preprocessor.check(str(tmp_path), False, other.metadata, other.spec)
  assert [line.partition('=')[0] for line in lines] == ['mean', 'std', 'crop']
  (tmp_path / preprocessor.NAME).write_text(
    json.dumps(preprocessor.content(data.metadata, data.spec))
  )
  again = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend='pil')
  found = again(Image.fromarray(pixels), return_tensors='np')['pixel_values'][0]
  assert np.abs(found - wanted).max() <= 1e-5
  with pytest.raises(InputError, match='short=20: expected 0 with stretch=True'):
    captions(str(tmp_path), stretch=True, short=20, **words)


def ending():
  """A tokenizer whose end of a text pads, too, as that of the published models."""
  tokenizers = pytest.importorskip('tokenizers')
  made = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({'<unk>': 0, '</s>': 1, 'a': 2, 'cat': 3}, unk_token='<unk>')
  )
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single='$A </s>', special_tokens=[('</s>', 1)]
  )
  return Subwords(made.to_str(), names={'eos': '</s>', 'pad': '</s>'})


def test_texts_are_padded_to_the_length_that_the_tower_reads():
  tokens, end = encode_captions(ending(), ['a cat', 'cat'], 5)
  assert (tokens.tolist(), end) == ([[2, 3, 1, 1, 1], [3, 1, 1, 1, 1]], 1)
  task = Contrastive(OURS, 'sigmoid')
  task.validate({'end_token': 1, 'length': 9, 'vocab_size': 50})
  with pytest.raises(InputError, match='data.length=8: expected 9, padding included'):
    task.validate({'end_token': 1, 'length': 8, 'vocab_size': 50})
