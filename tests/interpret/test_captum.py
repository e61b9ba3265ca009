"""Attributions beside those of captum, on the same weights (extra `reference`)."""

import jax
import numpy as np
import pytest

from bmx.adapt import hub
from bmx.core.tree import nested
from bmx.interpret import ablation, gradients, maps
from bmx.interpret.subject import Subject
from bmx.models.bert import BERT, Classifier
from bmx.parallel import unbox
from bmx.tasks.encoder import TextClassification
from tests.interpret.subjects import TARGET, B, T, V, run, subject, weighted

# captum announces what it changes: inputs that get gradients, hooks of modules.
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning:captum')
torch = pytest.importorskip('torch')
attr = pytest.importorskip('captum.attr', reason='the extra `reference` is not installed')


def tensor(x):
  return torch.tensor(np.array(x))


def near(found, expected, tolerance=1e-4):
  expected = expected.detach().numpy() if torch.is_tensor(expected) else expected
  assert found.shape == expected.shape
  np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def dense(params):
  layer = torch.nn.Linear(*params['kernel'].shape)
  layer.weight.data, layer.bias.data = tensor(params['kernel'].T), tensor(params['bias'])
  return layer


def torch_mlp(params):
  return torch.nn.Sequential(dense(params['dense_0']), torch.nn.ReLU(), dense(params['head']))


class Hwc(torch.nn.Module):
  """Flattens maps as bmx does: rows, columns, channels."""

  def forward(self, x):
    return x.permute(0, 2, 3, 1).flatten(1)


def torch_cnn(params):
  layers = []
  for name in ('conv_0', 'conv_1'):
    kernel = params[name]['kernel']
    conv = torch.nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, padding=1)
    conv.weight.data = tensor(kernel.transpose(3, 2, 0, 1))
    conv.bias.data = tensor(params[name]['bias'])
    layers += [conv, torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
  return torch.nn.Sequential(*layers, Hwc(), torch_mlp(params['MLP_0']))


def chw(x):
  return tensor(np.moveaxis(np.asarray(x), -1, 1))


def hwc(x):
  return np.moveaxis(x.detach().numpy(), 1, -1)


def pair(kind):
  """(score, x), torch's model, and how arrays pass to and from torch."""
  s = subject(kind)
  params = jax.tree.map(np.asarray, s.variables['params'])
  score, x = s.input()
  if kind == 'mlp':
    return score, x, torch_mlp(params), tensor, lambda t: t.detach().numpy()
  return score, x, torch_cnn(params), chw, hwc


@pytest.mark.parametrize('kind', ['mlp', 'cnn'])
def test_gradients(kind):
  score, x, model, there, back = pair(kind)
  target = tensor(TARGET).long()
  found = run(lambda x: gradients.saliency(score, x), x)
  near(found, back(attr.Saliency(model).attribute(there(x), target=target)))
  base = np.full_like(x, 0.1)
  found = run(lambda x: gradients.integrated_gradients(score, x, base, 1), x)
  expected, gap = attr.IntegratedGradients(model).attribute(
    there(x), there(base), target=target, n_steps=gradients.NODES, return_convergence_delta=True
  )
  near(found.values, back(expected))
  np.testing.assert_allclose(found.gap, gap.numpy(), atol=1e-4)


@pytest.mark.parametrize(
  ('kind', 'size', 'stride'),
  [('mlp', (2,), (2,)), ('cnn', (3, 4), (2, 3)), ('cnn', (8, 1), (8, 1))],
)
def test_occlusion(kind, size, stride):
  score, x, model, there, back = pair(kind)
  masks = ablation.windows(x.shape[1:], size, stride)

  def occlude(x):
    return ablation.spread(ablation.occlusion(score, x, 0.5, masks), masks)

  found = np.broadcast_to(run(occlude, x), x.shape)
  channels = there(x).shape[1] if kind == 'cnn' else None
  window, step = ((channels, *size), (channels, *stride)) if channels else (size, stride)
  expected = attr.Occlusion(model).attribute(
    there(x), window, step, baselines=0.5, target=tensor(TARGET).long()
  )
  near(found, back(expected))


def test_shapley_values_with_all_orders():
  """Sampled values with every order of three groups are captum's, whose features are the groups."""
  score, x, model, there, _ = pair('mlp')
  groups = np.array([0, 0, 1, 1, 1, 2])
  masks = groups == np.arange(3)[:, None]
  orders = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
  base = np.full((1, 6), 0.3, np.float32)
  found = run(lambda x: ablation.shapley(score, x, base, masks, orders, np.zeros(6, int)), x)
  expected = attr.ShapleyValues(model).attribute(
    there(x), there(base), target=tensor(TARGET).long(), feature_mask=torch.tensor(groups)[None]
  )
  near(found.values[:, groups], expected)


def test_grad_cam():
  s = subject('cnn')
  found = run(lambda v: maps.grad_cam(Subject(s.task, v, s.batch, TARGET)), s.variables)
  model = torch_cnn(jax.tree.map(np.asarray, s.variables['params']))
  cam = attr.LayerGradCam(model, model[3])
  expected = cam.attribute(chw(s.batch['image']), tensor(TARGET).long(), relu_attributions=True)
  near(found, expected[:, 0])
  near(run(lambda v: maps.grad_cam(s, 'conv_1'), s.variables), expected[:, 0])


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
  """The same weights in transformers and in bmx; the second text ends in padding."""
  transformers = pytest.importorskip('transformers')
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  torch.manual_seed(0)
  config = transformers.BertConfig(
    vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_labels=3,
    intermediate_size=24, max_position_embeddings=T, initializer_range=0.3,
    attn_implementation='eager',
  )  # fmt: skip
  theirs = transformers.BertForSequenceClassification(config).eval()
  folder = tmp_path_factory.mktemp('bert')
  theirs.save_pretrained(folder)
  task = TextClassification(Classifier(BERT(V, T, 16, 2, 4, mlp_dim=24), 3))
  batch = weighted(subject('bert').batch)
  abstract = unbox(
    jax.eval_shape(lambda k: task.model.init(k, *task.inputs(batch)), jax.random.PRNGKey(0))
  )
  params = nested(hub.load(folder, abstract['params']))
  return Subject(task, {'params': params}, batch, TARGET), theirs


def test_bert(bert):
  """Attributions of embeddings beside those of captum's layer methods."""
  s, theirs = bert
  ids, mask = (tensor(s.batch[k]).long() for k in ('tokens', 'segment_ids'))
  target = tensor(TARGET).long()
  # captum stacks the batches of all steps.
  logits = lambda ids: theirs(ids, attention_mask=mask.repeat(len(ids) // B, 1)).logits
  score, x = s.input()
  table = theirs.bert.embeddings.word_embeddings
  near(x, table(ids))
  lig = attr.LayerIntegratedGradients(logits, table)
  expected = lig.attribute(ids, torch.zeros_like(ids), target=target, n_steps=gradients.NODES)
  base = table(torch.zeros_like(ids)).detach().numpy()
  found = run(lambda x: gradients.integrated_gradients(score, x, base, 1), x)
  near(found.values, expected)
  given = table(ids).detach().requires_grad_()
  of_embeddings = lambda e: theirs(inputs_embeds=e, attention_mask=mask).logits
  near(run(lambda x: gradients.saliency(score, x), x),
       attr.Saliency(of_embeddings).attribute(given, target=target))  # fmt: skip
  masks = ablation.windows((T, 16), (1,), (1,))
  occluded = attr.Occlusion(of_embeddings).attribute(given, (1, 16), (1, 16), target=target)
  near(run(lambda x: ablation.occlusion(score, x, 0.0, masks), x), occluded[..., 0])


def test_attention_and_rollout(bert):
  s, theirs = bert
  ids, mask = (tensor(s.batch[k]).long() for k in ('tokens', 'segment_ids'))
  out = theirs(ids, attention_mask=mask, output_attentions=True)
  found = run(lambda v: maps.attention_weights(s.task, v, s.batch), s.variables)
  assert found.shape == (2, B, 4, T, T)
  real = s.batch['segment_ids'][:, None, :, None] > 0
  expected = torch.stack(out.attentions).detach().numpy()
  near(found * real, expected * real)
  total = np.eye(T)[None]
  for layer in expected.mean(2):
    mixed = (layer + np.eye(T)) / 2
    total = mixed / mixed.sum(-1, keepdims=True) @ total
  near(run(maps.rollout, found)[:, 0], total[:, 0])
