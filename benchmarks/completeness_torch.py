"""The networks of `benchmarks.completeness` in torch, written as torch's users write them."""

import math

import torch  # pyright: ignore
from torch import nn  # pyright: ignore
from torch.nn import functional  # pyright: ignore

from benchmarks.completeness_networks import HIDDEN, WIDTH


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.c, self.relu, self.tanh = nn.Linear(HIDDEN, 1), nn.ReLU(), nn.Tanh()

    def forward(self, x):
        return self.c(self.tanh(self.b(self.relu(self.a(x)))))


class Functional(MLP):
    def forward(self, x):
        return self.c(torch.tanh(self.b(functional.relu(self.a(x)))))


class Reused(MLP):
    def forward(self, x):
        return self.c(self.relu(self.b(self.relu(self.a(x)))))


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.d = nn.Linear(36, HIDDEN), nn.Linear(HIDDEN, 1)
        self.relu, self.pool, self.sigmoid = nn.ReLU(), nn.MaxPool2d(2), nn.Sigmoid()

    def forward(self, x):
        h = self.pool(self.b(self.relu(self.a(x))))
        return self.d(self.sigmoid(self.c(h.flatten(1))))


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Linear(WIDTH, HIDDEN), nn.LayerNorm(HIDDEN)
        self.b, self.gelu = nn.Linear(HIDDEN, 1), nn.GELU()

    def forward(self, x):
        return self.b(self.gelu(self.norm(self.a(x))))


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN)
        self.c, self.sigmoid = nn.Linear(HIDDEN, 1), nn.Sigmoid()

    def forward(self, x):
        return self.c(self.sigmoid(self.a(x)) * self.b(x))


class GRU(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.last = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, 1)

    def forward(self, x):
        return self.last(self.rnn(x)[0][:, -1])


class LSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.last = nn.Linear(2 * WIDTH, 1)

    def forward(self, x):
        return self.last(self.rnn(x)[0].mean(1))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False) for _ in range(2))
        self.one, self.two, self.relu = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH), nn.ReLU()

    def forward(self, x):  # with one ReLU for both, as in torchvision
        return self.relu(x + self.two(self.b(self.relu(self.one(self.a(x))))))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, WIDTH, 3, padding=1, bias=False)
        self.norm, self.relu = nn.BatchNorm2d(WIDTH), nn.ReLU()
        self.blocks, self.last = nn.Sequential(Block(), Block()), nn.Linear(WIDTH, 1)

    def forward(self, x):
        return self.last(self.blocks(self.relu(self.norm(self.stem(x)))).mean((2, 3)))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.one, self.two = nn.RMSNorm(WIDTH, eps=1e-6), nn.RMSNorm(WIDTH, eps=1e-6)
        self.silu, self.softmax = nn.SiLU(), nn.Softmax(-1)

    def forward(self, x):
        h, ahead = self.one(x), torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        scores = self.q(h) @ self.k(h).transpose(1, 2) / math.sqrt(WIDTH)
        x = x + self.o(self.softmax(scores.masked_fill(ahead, -1e9)) @ self.v(h))
        h = self.two(x)
        return x + self.down(self.silu(self.gate(h)) * self.up(h))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.last = nn.Sequential(Layer(), Layer()), nn.Linear(WIDTH, 1)

    def forward(self, x):
        return self.last(self.blocks(x)[:, -1])
