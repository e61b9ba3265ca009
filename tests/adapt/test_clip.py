"""Folders of CLIP: the same numbers as transformers, both ways."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from bmx.adapt import hub, preprocessor, restore
from bmx.core.errors import InputError
from bmx.core.tree import nested
from bmx.data.images.captions import captions
from bmx.data.images.pairs import encode_captions
from bmx.data.text.tokenizer import load
from bmx.models.clip import CLIP, TextTower
from bmx.models.mlp import MLP
from bmx.models.vit import ViT
from bmx.tasks.contrastive import Contrastive
from tests.models.weights import drawn, jit, shapes

TEXT = {
  'vocab_size': 50, 'hidden_size': 16, 'intermediate_size': 24, 'num_hidden_layers': 2,
  'num_attention_heads': 2, 'max_position_embeddings': 9, 'bos_token_id': 48, 'eos_token_id': 49,
  'initializer_range': 0.2,
}  # fmt: skip
VISION = {
  'hidden_size': 12, 'intermediate_size': 20, 'num_hidden_layers': 2, 'num_attention_heads': 2,
  'image_size': 12, 'patch_size': 4, 'initializer_range': 0.2,
}  # fmt: skip
OURS = CLIP(
  ViT(7, 12, 4, width=12, depth=2, heads=2, pre_norm=True, patch_bias=False, head_bias=False),
  TextTower(50, 9, 7, end_token=49, width=16, depth=2, heads=2),
)


@pytest.fixture(scope='module', params=[49, 2], ids=['first end', 'largest id'])
def reference(request, tmp_path_factory):
  """A folder that transformers wrote, and its model; files before 2023 have `eos_token_id` 2."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  torch.manual_seed(0)
  config = transformers.CLIPConfig(
    text_config=TEXT | {'eos_token_id': request.param}, vision_config=VISION, projection_dim=7
  )
  model = transformers.CLIPModel(config).eval()
  for x in model.state_dict().values():
    if x.ndim == 1:  # biases and scales that matter
      x += 0.1 * torch.randn_like(x).abs()
  folder = tmp_path_factory.mktemp('reference')
  model.save_pretrained(folder)
  return folder, model


def inputs():
  random = np.random.default_rng(0)
  image = random.normal(size=(3, 12, 12, 3)).astype(np.float32)
  tokens = random.integers(0, 48, (3, 9))
  for row, end in zip(tokens, (3, 8, 5), strict=True):
    row[end:] = 49
  return image, tokens.astype(np.int32)


def read(folder, model):
  found = hub.load(folder, shapes(model, *inputs())['params'])
  return {'params': nested(found)}


@pytest.mark.parametrize('scan', [False, True])
def test_logits_and_loss_are_those_of_transformers(reference, scan):
  torch = pytest.importorskip('torch')
  folder, theirs = reference
  model = restore.model(str(folder), image={'scan': scan}, text={'scan': scan})
  assert model.image.scan == model.text.scan == scan
  image, tokens = inputs()
  given = read(folder, model)
  out = jit(model.apply)(given, image, tokens)
  with torch.no_grad():
    expected = theirs(
      input_ids=torch.tensor(tokens), pixel_values=torch.tensor(image.transpose(0, 3, 1, 2)),
      return_loss=True,
    )  # fmt: skip
  logits = out.scale * out.image @ out.text.T
  assert np.abs(logits - expected.logits_per_image.numpy()).max() <= 1e-4
  batch = {'weights': np.ones(3, np.float32), 'caption': np.arange(3)}
  total, count, _ = Contrastive(model).score(out, batch, train=True)
  assert float(total / count) == pytest.approx(float(expected.loss), 1e-5)


def stored(folder):
  return {k: x.view(f'u{x.itemsize}') for k, x in load_file(folder / 'model.safetensors').items()}


def test_a_folder_is_written_as_transformers_wrote_it(reference, tmp_path):
  """Bit for bit, the scalar too, with the same sizes; transformers misses and spares nothing."""
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  folder, theirs = reference
  model = restore.model(str(folder))
  hub.save(tmp_path / 'out', model, read(folder, model)['params'])
  ours, expected = stored(tmp_path / 'out'), stored(folder)
  assert ours.keys() == expected.keys()
  for name, x in ours.items():
    np.testing.assert_array_equal(x, expected[name], err_msg=name)
  again, report = transformers.CLIPModel.from_pretrained(tmp_path / 'out', output_loading_info=True)
  assert not any(report.values()), report
  image, tokens = inputs()
  given = {'input_ids': torch.tensor(tokens),
           'pixel_values': torch.tensor(image.transpose(0, 3, 1, 2))}  # fmt: skip
  with torch.no_grad():
    assert torch.equal(again(**given).logits_per_image, theirs(**given).logits_per_image)
  a, b = again.config.to_dict(), theirs.config.to_dict()
  assert a['projection_dim'] == b['projection_dim']
  assert a['logit_scale_init_value'] == pytest.approx(b['logit_scale_init_value'])
  free = ('initializer_range', 'projection_dim', 'bos_token_id', 'pad_token_id', 'eos_token_id',
          'dtype')  # fmt: skip
  for key in ('text_config', 'vision_config'):
    assert {k: v for k, v in a[key].items() if k not in free} == {
      k: v for k, v in b[key].items() if k not in free
    }
  assert a['text_config']['eos_token_id'] == 49


def clip_tokenizer(transformers):
  """A tokenizer of CLIP's kind with a small vocabulary."""
  letters = 'abcdefghijklmnopqrstuvwxyz'
  pieces = [*letters, *(f'{x}</w>' for x in letters), 'ca', 'cat</w>', 'do', 'dog</w>',
            '<|startoftext|>', '<|endoftext|>']  # fmt: skip
  merges = [('c', 'a'), ('ca', 't</w>'), ('d', 'o'), ('do', 'g</w>')]
  vocab = {piece: i for i, piece in enumerate(pieces)}
  return transformers.CLIPTokenizer(vocab=vocab, merges=merges)


def test_tokenizer_and_images_are_those_of_transformers(tmp_path):
  """Tokens of captions, and pixels, equal those of the folder's CLIPProcessor."""
  transformers = pytest.importorskip('transformers')
  pytest.importorskip('torch')
  from PIL import Image

  theirs = clip_tokenizer(transformers)
  theirs.save_pretrained(tmp_path)
  texts = ['A cat', 'the dog, a  CAT', 'x']
  expected = theirs(texts, padding='max_length', max_length=12, truncation=True)['input_ids']
  tokenizer = load(str(tmp_path))
  tokens, end = encode_captions(tokenizer, texts, 12)
  assert end == theirs.eos_token_id
  for ours, wanted in zip(tokens.tolist(), expected, strict=True):
    size = wanted.index(end) + 1
    assert ours[:size] == wanted[:size]
  random = np.random.default_rng(0)
  pixels = random.integers(0, 256, (20, 30, 3)).astype(np.uint8)
  Image.fromarray(pixels).save(tmp_path / '0.png')
  (tmp_path / 'captions.jsonl').write_text(json.dumps({'file': '0.png', 'caption': 'a cat'}))
  data = captions(str(tmp_path), tokenizer=tokenizer, size=12, length=12, train=False)
  sizes = {'size': {'shortest_edge': 12}, 'crop_size': {'height': 12, 'width': 12}}
  process = transformers.CLIPImageProcessorPil(**sizes)
  wanted = process(Image.fromarray(pixels), return_tensors='np')['pixel_values'][0]
  ours = data.rows(np.zeros(1, int), np.zeros(1, int))['image'][0]
  assert np.abs(ours - wanted.transpose(1, 2, 0)).max() <= 1e-5
  process.save_pretrained(tmp_path)
  given = data.metadata, data.spec
  assert not preprocessor.check(str(tmp_path), False, *given)
  other = captions(str(tmp_path), tokenizer=tokenizer, size=12, length=12, resample='bilinear',
                   mean=(0.5,) * 3, train=False)  # fmt: skip
  lines = preprocessor.check(str(tmp_path), False, other.metadata, other.spec)
  assert [line.partition('=')[0] for line in lines] == ['mean', 'resample']
  written = preprocessor.content(*given)
  (tmp_path / preprocessor.NAME).write_text(json.dumps(written))
  again = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend='pil')
  square = Image.fromarray(pixels[:, 5:25])
  found = again(square, return_tensors='np')['pixel_values'][0]
  expected = process(square, return_tensors='np')['pixel_values'][0]
  assert np.abs(found - expected).max() <= 1e-5


CONFIG = {
  'architectures': ['CLIPModel'], 'projection_dim': 7, 'text_config': TEXT,
  'vision_config': VISION,
}  # fmt: skip


@pytest.mark.parametrize(('change', 'message'), [
  ({'text_config': TEXT | {'eos_token_id': [48, 49]}}, r'text_config.eos_token_id=\[48, 49\]: exp'),
  ({'text_config': TEXT | {'hidden_act': 'mish'}}, "text_config.hidden_act='mish': supported are"),
  ({'vision_config': VISION | {'image_size': [12, 16]}}, r'vision_config.image_size=\[12, 16\]'),
  ({'vision_config': 7}, 'vision_config=7: expected an object'),
  ({'logit_scale_init_value': 'x'}, "logit_scale_init_value='x': expected a number"),
  ({'quantization_config': {'bits': 4}}, 'quantization_config=.*: supported is none'),
])  # fmt: skip
def test_what_is_not_reproduced_is_refused(change, message, tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(CONFIG | change))
  with pytest.raises(InputError, match=message):
    hub.part(tmp_path)


def test_published_files_of_few_keys(tmp_path):
  """A missing key has the value of transformers; KEY_dict, of old files, replaces KEY."""
  config = {'architectures': ['CLIPModel'], 'vision_config': None, 'text_config': TEXT}
  (tmp_path / 'config.json').write_text(json.dumps(config | {'text_config_dict': {}}))
  model = restore.model(str(tmp_path))
  text, image = model.text, model.image
  assert (text.vocab_size, text.width, text.heads, text.end_token) == (49_408, 512, 8, 49_407)
  assert (image.patch_size, image.width, image.num_outputs) == (32, 768, 512)
  assert model.temperature == pytest.approx(0.07, 1e-4)


@pytest.mark.parametrize(('model', 'message'), [
  (OURS.clone(image=MLP(7)), 'task.model.image=MLP: expected the ViT of a CLIP'),
  (OURS.clone(image=ViT(7, 12, 4)), 'with pre_norm=True, patch_bias=False'),
  (OURS.clone(bias=True), 'bias=True: it has False'),
  (OURS.clone(image=OURS.image.clone(pool='mean')), "image.pool='mean': it has 'class'"),
  (OURS.clone(text=OURS.text.clone(end_token=2)), 'end_token=2: expected another id'),
])  # fmt: skip
def test_what_transformers_lacks_is_refused(model, message, tmp_path):
  with pytest.raises(InputError, match=message):
    hub.save(tmp_path / 'out', model, {})


def test_rows_that_pad_the_vocabulary_stay(tmp_path):
  model = OURS.clone(text=OURS.text.clone(vocab_pad=6))
  given = drawn(shapes(model, *map(jnp.asarray, inputs())))
  hub.save(tmp_path / 'out', model, given['params'])
  table = 'text_model.embeddings.token_embedding.weight'
  assert load_file(tmp_path / 'out/model.safetensors')[table].shape == (50, 16)
  found = read(tmp_path / 'out', model)['params']
  assert not np.asarray(found['text']['embed']['table'])[50:].any()
  found['text']['embed']['table'] = given['params']['text']['embed']['table']
  jax.tree.map(np.testing.assert_array_equal, found, given['params'])
