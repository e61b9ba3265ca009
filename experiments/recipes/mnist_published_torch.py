"""The recipe `mnist_mlp:published` in plain PyTorch, for comparison (extra `reference`).

    python experiments/recipes/mnist_published_torch.py TFDS_DATA_DIR

784-256-128-10 ReLU, SGD 0.01, batch 64, 10 epochs, three seeds: prints test accuracy.
"""

import statistics
import sys

import torch

from bmx.data.tfds import tfds


def split(folder: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
  """Reads all images [N, 784], pixels in 0..1, and labels [N]."""
  data = tfds('mnist', name, folder, train=False)
  rows = data.gather(data.arrays, slice(None))
  return torch.tensor(rows['image']).flatten(1), torch.tensor(rows['label']).long()


def train(seed: int, images: torch.Tensor, labels: torch.Tensor) -> torch.nn.Module:
  """Trains the MLP for 10 epochs."""
  torch.manual_seed(seed)
  model = torch.nn.Sequential(
    torch.nn.Linear(784, 256), torch.nn.ReLU(),
    torch.nn.Linear(256, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10),
  )  # fmt: skip
  optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
  for _ in range(10):
    for rows in torch.randperm(len(images)).split(64):
      optimizer.zero_grad()
      torch.nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
      optimizer.step()
  return model


def main() -> None:
  """Trains three seeds and prints their test accuracy."""
  folder = sys.argv[1]
  images, labels = split(folder, 'train')
  test_images, test_labels = split(folder, 'test')
  values = []
  for seed in range(3):
    model = train(seed, images, labels)
    with torch.no_grad():
      predicted = model(test_images).argmax(1)
    values.append((predicted == test_labels).float().mean().item())
    sys.stdout.write(f'seed {seed}: {values[-1]:.4f}\n')
  sys.stdout.write(f'mean {statistics.mean(values):.4f}\n')


if __name__ == '__main__':
  main()
