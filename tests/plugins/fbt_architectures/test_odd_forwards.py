"""Forward passes that few networks have: a trace cuts them right, or says in one line what it cannot keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fbt_architectures.traced_cut import cut_by_trace
from torch import Tensor, nn

from fbt_plugins import ConfigError, StagedModel


class Net(nn.Module):
    """Four strided convolutions and a classifier; subclasses change one thing each."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1), nn.BatchNorm2d(8)) for i in range(4)
        )
        self.fc = nn.Linear(8, width)

    def features(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).relu()
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def cut(net: nn.Module, stages: Any = None, **about: Any) -> StagedModel:
    torch.manual_seed(0)
    return cut_by_trace(net, stages, name="net", image_size=(32, 32), **about)


class Spectral(nn.Module):
    """Weights for complex maps."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, size, size, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_a_stage_ends_where_a_map_is_of_real_numbers_again() -> None:
    class Complex(Net):
        def __init__(self) -> None:
            super().__init__()
            self.filters = nn.ModuleList(Spectral(16 // 2**i) for i in range(4))

        def features(self, x: Tensor) -> Tensor:
            for block, filter_ in zip(self.blocks, self.filters, strict=True):
                x = torch.fft.ifft2(filter_(torch.fft.fft2(block(x)))).real
            return x.mean((2, 3))

    model = cut(Complex(), [f"filters.{i}" for i in range(4)], layout="NCHW")
    assert model.verify().stages == 4
    outputs = model.eval().stage_outputs(torch.randn(2, 3, 32, 32), range(1, 5))
    assert all(x.dtype == torch.float32 for x in outputs.values())


class Nearest(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


def test_codes_are_handed_on_by_no_stage() -> None:
    class Codes(Net):
        def __init__(self) -> None:
            super().__init__()
            self.codes, self.words = Nearest(8, 4, 1), nn.Embedding(4, 8)

        def features(self, x: Tensor) -> Tensor:
            words = self.words(self.codes(self.blocks[0](x)))
            return self.blocks[1](words.permute(0, 3, 1, 2)).mean((2, 3))

    with pytest.raises(ConfigError, match="behind 'codes' later layers need a tensor of 16x16 of int64 per image"):
        cut(Codes(), ["blocks.0", "codes", "blocks.1"])


def test_tokens_before_images_are_said_so() -> None:
    class TokensFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.fc = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 5)
            self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).permute(2, 0, 1)
            for block in self.blocks:
                x = block(x)
            return self.fc(x.mean(0))

    with pytest.raises(ConfigError, match=r"a tensor \(16, images, 8\), which does not have the images first"):
        cut(TokensFirst(), ["blocks.0", "blocks.1", "blocks.2"])


def by_einsum(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("nd,cd->nc", x, weight)


def by_distance(x: Tensor, weight: Tensor) -> Tensor:
    return -torch.cdist(x, weight)


@pytest.mark.parametrize("product", [by_einsum, by_distance], ids=["einsum", "distance"])
def test_weights_that_make_logits_without_a_layer_are_refused(product: Callable[..., Tensor]) -> None:
    class Prototypes(Net):
        def __init__(self) -> None:
            super().__init__(8)
            self.prototypes = nn.Parameter(torch.randn(5, 8))

        def forward(self, x: Tensor) -> Tensor:
            return product(super().forward(x), nn.functional.normalize(self.prototypes))

    with pytest.raises(
        ConfigError, match=r"it makes its logits of what fc gives by prototypes, .*\(.*test_odd_forwards.py:\d+\); mult"
    ):
        cut(Prototypes())


def test_a_temperature_behind_the_classifier_is_none_of_them() -> None:
    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale.exp()

    assert cut(Scaled()).verify().features


class Frozen(Net):
    def features(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.blocks[1](self.blocks[0](x))
        return self.blocks[3](self.blocks[2](x)).mean((2, 3))


class ByItsOwnScale(Net):
    @torch.no_grad()
    def scale(self, x: Tensor) -> Tensor:
        return x.abs().mean((1, 2, 3), keepdim=True) + 1

    def features(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
            x = x / self.scale(x)
        return x.mean((2, 3))


@pytest.mark.parametrize(("net", "without"), [(Frozen, 8), (ByItsOwnScale, 0)])
def test_what_runs_without_gradients_does_so_in_its_stage(net: type[Net], without: int) -> None:
    model = cut(net())
    proof = model.verify()
    assert proof.gradients == proof.parameters - without
    (model.train()(torch.randn(2, 3, 32, 32)) ** 2).sum().backward()
    assert sum(p.grad is None for p in model.net.parameters()) == without


class Reverse(torch.autograd.Function):
    """Gradients are turned round, as in domain-adversarial training."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, by: float) -> Tensor:
        ctx.by = by
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.by * gradient, None


@torch.jit.script
def swish(x):  # type: ignore[no-untyped-def]
    return x * x.sigmoid()


class Reversing(Net):
    def features(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = Reverse.apply(block(x), 0.5)
        return x.mean((2, 3))


class Compiled(Net):
    def features(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = swish(block(x))
        return x.mean((2, 3))


@pytest.mark.parametrize("net", [Reversing, Compiled])
def test_functions_with_a_backward_pass_of_their_own_and_compiled_ones_are_kept_whole(net: type[Net]) -> None:
    apply = vars(torch.autograd.Function)["apply"]
    model = cut(net())
    assert model.verify().gradients == 18 and vars(torch.autograd.Function)["apply"] is apply
    assert model.specs_at((64, 64))[0].grid == (32, 32)


class Statement(Net):
    def features(self, x: Tensor) -> Tensor:
        x.sub_(0.5).div_(2)
        for block in self.blocks:
            x = block(x)
            x.mul_(0.5)
            nn.functional.leaky_relu(x, inplace=True)
        return x.mean((2, 3))


class Alias(Net):
    def features(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = same = block(x)
            same += 1
            same[:, 0] = 0
        return x.mean((2, 3))


class Anneals(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps.add_(1)
        return super().forward(x) * (1 + 0.1 * self.steps)


@pytest.mark.parametrize("net", [Statement, Alias, Anneals])
def test_what_is_written_in_place_is_seen_later(net: type[Net]) -> None:
    model = cut(net())
    assert model.verify().gradients == 18
    images = torch.randn(2, 3, 32, 32)
    model.eval()
    known = model.knowledge(images.clone(), [1, 2, 3, 4])
    x = images.clone()
    for number, stage in enumerate(model.stages, 1):
        x = stage(x.clone())
        assert torch.equal(known.stages[number], x)


class Labels(Net):
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if x.mean() > 0 else x


class Branching(Net):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[1].append(Branches())


class Hooked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_full_backward_pre_hook(lambda module, gradient: (gradient[0] * 2,))


class Draws(Net):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * torch.rand(x.shape[0], 1, generator=self.generator)


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (
            Labels,
            "it takes more than images: .* 'labels'; let the factory return a module whose forward takes the images",
        ),
        (Branching, r"depends on values of a tensor \(Tensor.item\) \(.*test_odd_forwards.py"),
        (Hooked, "Hooked has backward hooks, which would not run"),
        (Draws, "it draws random numbers of a generator of its own"),
    ],
)
def test_what_a_trace_cannot_keep_is_said(net: type[Net], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        cut(net())


def test_a_lazy_layer_that_has_not_run_is_said_so() -> None:
    net = Net()
    net.fc = nn.LazyLinear(5)
    with pytest.raises(ConfigError, match=r"^Net: fc.weight of a lazy layer has no shape .* in the factory"):
        StagedModel.of(net, image_size=32)
    net(torch.randn(2, 3, 32, 32))
    assert StagedModel.of(net, image_size=32).num_classes == 5


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_a_network_computes_again_itself_is_cut(reentrant: bool) -> None:
    class Again(Net):
        def __init__(self) -> None:
            super().__init__()
            for block in self.blocks:
                del block[1]  # statistics would be updated twice

        def features(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant) if x.shape[1] > 3 else block(x)
            return x.mean((2, 3))

    assert cut(Again()).verify().gradients == 10
