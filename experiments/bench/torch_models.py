"""The same models in plain PyTorch."""

import itertools

import numpy as np
import torch
from torch import nn


def mlp(widths: tuple[int, ...]) -> nn.Module:
  """Returns an MLP with ReLU."""
  layers: list[nn.Module] = [nn.Flatten()]
  for a, b in itertools.pairwise(widths):
    layers += [nn.Linear(a, b), nn.ReLU()]
  return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
  """Returns the CNN for MNIST."""
  return nn.Sequential(
    nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(7 * 7 * 64, 128), nn.ReLU(), nn.Linear(128, 10),
  )  # fmt: skip


class Block(nn.Module):
  """A block of nanoGPT, without biases, with flash attention if PyTorch has it."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.heads = heads
    self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
    self.qkv = nn.Linear(width, 3 * width, bias=False)
    self.out = nn.Linear(width, width, bias=False)
    self.up = nn.Linear(width, 4 * width, bias=False)
    self.down = nn.Linear(4 * width, width, bias=False)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    b, t, d = x.shape
    qkv = self.qkv(self.norms[0](x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    y = nn.functional.scaled_dot_product_attention(*qkv.unbind(0), is_causal=True)
    x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
    return x + self.down(nn.functional.gelu(self.up(self.norms[1](x)), approximate='tanh'))


class GPT(nn.Module):
  """GPT-2 with a tied head."""

  def __init__(self, vocab: int, length: int, width: int, depth: int, heads: int):
    super().__init__()
    self.embed, self.position = nn.Embedding(vocab, width), nn.Embedding(length, width)
    self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
    self.norm = nn.LayerNorm(width, bias=False)

  def forward(self, tokens: torch.Tensor) -> torch.Tensor:
    x = self.embed(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
    for block in self.blocks:
      x = block(x)
    return self.norm(x) @ self.embed.weight.T


class LlamaBlock(nn.Module):
  """A block of Llama, with grouped-query attention."""

  def __init__(self, width: int, heads: int, kv_heads: int, hidden: int):
    super().__init__()
    self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
    self.norms = nn.ModuleList(nn.RMSNorm(width, 1e-5) for _ in range(2))
    self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.size, bias=False)
    self.out = nn.Linear(width, width, bias=False)
    self.gate = nn.Linear(width, hidden, bias=False)
    self.up = nn.Linear(width, hidden, bias=False)
    self.down = nn.Linear(hidden, width, bias=False)

  def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    b, t, d = x.shape
    qkv = self.qkv(self.norms[0](x)).view(b, t, -1, self.size).transpose(1, 2)
    q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], 1)
    turn = lambda y: (y * cos + torch.cat(y.chunk(2, -1)[::-1], -1) * sin).to(v.dtype)
    y = nn.functional.scaled_dot_product_attention(
      turn(q), turn(k), v, is_causal=True, enable_gqa=True
    )
    x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
    y = self.norms[1](x)
    return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
  """Llama with a tied head and rotary positions in halves."""

  def __init__(
    self, vocab: int, length: int, width: int, depth: int, heads: int, kv_heads: int, hidden: int
  ):
    super().__init__()
    self.embed = nn.Embedding(vocab, width)
    self.blocks = nn.ModuleList(LlamaBlock(width, heads, kv_heads, hidden) for _ in range(depth))
    self.norm = nn.RMSNorm(width, 1e-5)
    size = width // heads
    angle = torch.outer(torch.arange(length), 500_000.0 ** -(torch.arange(0, size, 2) / size))
    self.register_buffer('cos', torch.cat([angle.cos()] * 2, -1), persistent=False)
    self.register_buffer('sin', torch.cat([-angle.sin(), angle.sin()], -1), persistent=False)

  def forward(self, tokens: torch.Tensor) -> torch.Tensor:
    x = self.embed(tokens)
    for block in self.blocks:
      x = block(x, self.cos, self.sin)
    return self.norm(x) @ self.embed.weight.T


def mnist_loader(image: np.ndarray, label: np.ndarray, batch: int):
  """Loads MNIST as torchvision does: PIL image, tensor, normalized tensor, example by example."""
  from PIL import Image

  class Digits(torch.utils.data.Dataset):
    def __len__(self) -> int:
      return len(label)

    def __getitem__(self, i: int):
      picture = Image.fromarray(image[i, :, :, 0])
      x = torch.from_numpy(np.array(picture)).view(28, 28, 1).permute(2, 0, 1).contiguous()
      return (x.to(torch.float32).div(255) - 0.1307) / 0.3081, int(label[i])

  return torch.utils.data.DataLoader(Digits(), batch_size=batch, shuffle=True)


def cifar_loader(image: np.ndarray, label: np.ndarray, batch: int):
  """Loads CIFAR-10 with the steps of torchvision's RandomCrop(32, padding=4) and flip."""

  class Pictures(torch.utils.data.Dataset):
    def __len__(self) -> int:
      return len(label)

    def __getitem__(self, i: int):
      x = torch.from_numpy(image[i]).permute(2, 0, 1)
      x = nn.functional.pad(x, (4, 4, 4, 4))
      top, left = torch.randint(9, (2,)).tolist()
      x = x[:, top : top + 32, left : left + 32]
      if torch.rand(()) < 0.5:
        x = x.flip(2)
      return x.to(torch.float32).div(255), int(label[i])

  return torch.utils.data.DataLoader(Pictures(), batch_size=batch, shuffle=True)


def epoch(model: nn.Module, loader):
  """Trains one epoch with the usual loop."""
  optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.99), weight_decay=0.1)

  def run() -> None:
    for x, y in loader:
      optimizer.zero_grad()
      loss = nn.functional.cross_entropy(model(x), y)
      loss.backward()
      optimizer.step()

  return run
