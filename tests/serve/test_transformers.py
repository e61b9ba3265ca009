"""The same weights, the same prompts, the same tokens as Hugging Face's generate."""

import jax
import numpy as np
import pytest

from bmx.adapt import hub, restore
from bmx.core.tree import nested
from bmx.parallel import Layout, make_mesh, unbox
from bmx.serve.beam import BeamSearch
from bmx.serve.decode import decoder
from bmx.serve.generate import Generator
from bmx.serve.sample import Sampling

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

ONE = Layout(make_mesh({'data': 1}, jax.devices()[:1]))
PROMPTS = [[3, 14, 15, 9, 26, 5], [35, 8], [9, 7, 9, 32]]
TOKENS = 12
SIZES = {'n_layer': 2, 'n_embd': 32, 'n_head': 4, 'vocab_size': 67, 'n_positions': 48}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Weights whose next tokens are far from equally likely: rounding breaks no tie."""
  torch.manual_seed(0)
  config = transformers.GPT2Config(
    **SIZES, initializer_range=0.4, bos_token_id=None, eos_token_id=None
  )
  path = tmp_path_factory.mktemp('gpt2')
  transformers.GPT2LMHeadModel(config).save_pretrained(path)
  return str(path)


@pytest.fixture(scope='module')
def ours(folder):
  model = restore.model(folder)
  ids = jax.ShapeDtypeStruct((1, 4), np.int32)
  abstract = unbox(jax.eval_shape(model.init, jax.random.PRNGKey(0), ids)['params'])
  flat = hub.load(folder, abstract)
  return decoder(model, nested(flat), ONE)


def theirs(folder, prompts, **options):
  """Padded on the left, as its own documentation asks."""
  model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
  length = max(map(len, prompts))
  ids = torch.tensor([[0] * (length - len(p)) + p for p in prompts])
  mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
  with torch.no_grad():
    out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=TOKENS,
                         pad_token_id=0, **options)  # fmt: skip
  return out[:, length:].numpy()


@pytest.mark.parametrize('penalty', [1.0, 1.5])
def test_greedy(folder, ours, penalty):
  """A penalty without padding: there Hugging Face counts the padding as said."""
  prompts = PROMPTS if penalty == 1 else PROMPTS[:1]
  how = Sampling(temperature=0.0, repetition_penalty=penalty)
  generator = Generator(*ours, ONE, how)
  made = np.concatenate([m for m, _ in generator.stream(prompts, TOKENS)], axis=1)
  expected = theirs(folder, prompts, repetition_penalty=penalty)
  np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize('beams', [2, 5])
def test_beams(folder, ours, beams):
  """Texts of one length, where none ends."""
  expected = theirs(folder, PROMPTS[:1], num_beams=beams)
  made, _ = BeamSearch(*ours, ONE, beams)(PROMPTS[:1], TOKENS)
  assert made[0] == expected[0].tolist()


def best_text(row, ends):
  """The generated ids of a row of transformers, up to its end."""
  ids = row.tolist()
  stops = [i for i, token in enumerate(ids) if token in ends]
  return ids[: stops[0]] if stops else ids


MORE = [*PROMPTS, [60, 2, 41, 41], [17], [22, 50, 1, 8, 33], [44, 3], [1, 2, 3], [66, 30, 7, 7]]


@pytest.mark.parametrize('penalty', [1.0, 2.0])
@pytest.mark.parametrize(('beams', 'ends'), [(2, (36, 48)), (4, (50, 53))])
def test_beams_that_end(folder, ours, beams, ends, penalty):
  """36 texts with those of the other parameters: ended ones hold no live one's place."""
  options = {'num_beams': beams, 'length_penalty': penalty, 'eos_token_id': list(ends)}
  expected = [best_text(row, ends) for row in theirs(folder, MORE, **options)]
  assert BeamSearch(*ours, ONE, beams, ends, penalty)(MORE, TOKENS)[0] == expected
