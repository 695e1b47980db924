"""What a proof must not be fooled by: miniature networks of each kind, cut by a trace or by hand."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import RESMLP
from fbt_architectures.traced_cut import cut_by_trace
from torch import Tensor, nn

from fbt_plugins import ARCHITECTURES, ConfigError, Declaration, Knowledge, StagedModel, load_weights
from fbt_plugins.distill.distiller import Distiller
from fbt_plugins.engine.finished.student import save_student
from fbt_plugins.engine.hooks.ema import TRAINED, EMAHook
from fbt_plugins.models.knowledge import Batch
from fbt_plugins.models.proof import SplitError


class Net(nn.Module):
    """Four strided convolutions, each with a norm and an activation, and a classifier."""

    def __init__(
        self, act: Callable[[], nn.Module] = nn.ReLU, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            *(nn.Sequential(act(), nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1), norm(8)) for i in range(4))
        )
        self.act, self.fc = act(), nn.Linear(8, 10)

    def pool(self, x: Tensor) -> Tensor:
        return self.act(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.stages(x)))


def traced(net: nn.Module, **about: Any) -> StagedModel:
    return cut_by_trace(net, name="net", image_size=(32, 32), **about)


def in_place() -> nn.Module:
    return nn.ReLU(inplace=True)


class ByData(nn.Module):
    """Overwrites its input where torch counts no change."""

    def forward(self, x: Tensor) -> Tensor:
        x.data.clamp_(min=0)
        return x


class InTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, self.training, inplace=True)


# ---- what is kept of a stage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [in_place, ByData, InTraining], ids=["relu", "data", "dropout"])
def test_what_is_kept_of_a_stage_is_what_it_gives(act: Callable[[], nn.Module], images: Tensor) -> None:
    torch.manual_seed(0)
    model = traced(Net(act))
    proof = model.verify()
    assert (proof.stages, proof.steps, proof.features) == (4, 2, True)
    model.train(act is InTraining)
    torch.manual_seed(0)
    known = model.knowledge(images.clone(), (1, 2, 4))
    torch.manual_seed(0)
    x = images.clone()
    for number in (1, 2, 3, 4):
        x = model.stages[number - 1](x.clone())
        if number in known.stages:
            assert torch.equal(known.stages[number], x)


def test_nothing_is_copied_where_nothing_is_overwritten(images: Tensor) -> None:
    model, given = traced(Net()).eval(), []
    model.stages[1].register_forward_pre_hook(lambda module, args: given.append(args[0]))
    model.writes  # noqa: B018 - measured before the hook counts
    given.clear()
    assert model.knowledge(images, (1,)).stages[1] is given[0]
    assert traced(Net(in_place)).writes.outputs == {1, 2, 3, 4}


def distiller(make: Callable[..., Distiller], plugins: Any, net: nn.Module, splice: str, **options: Any) -> Distiller:
    registry = plugins.registries.architectures
    registry.register_module(name="Mini", module=lambda: traced(net))
    try:
        return make(dict(type="Mini"), RESMLP, splice, **options)
    finally:
        registry.module_dict.pop("Mini")


def test_a_fusion_model_knows_the_same_whoever_else_is_asked(
    make: Callable[..., Distiller], plugins: Any, images: Tensor
) -> None:
    torch.manual_seed(0)
    model = distiller(make, plugins, Net(in_place), "S1-3+T4").eval()
    alone = model.predict(images, ["fusion"])["fusion"]
    assert torch.equal(model.predict(images, ["student", "fusion"])["fusion"], alone)


def test_in_place_and_not_train_alike(
    make: Callable[..., Distiller], plugins: Any, images: Tensor, labels: Tensor
) -> None:
    gradients = []
    for act in (nn.ReLU, in_place):
        torch.manual_seed(0)
        model = distiller(make, plugins, Net(act), "T1-3+S4").train()
        sum(model.losses(images, Batch(labels)).values()).backward()
        gradients.append([p.grad for p in model.student.parameters()])
    assert all(map(torch.equal, *gradients))


# ---- state ----------------------------------------------------------------------------------------------------------


class Counts(Net):
    def __init__(self) -> None:
        super().__init__()
        self.t = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.t += 1
        x = self.stages(x)
        return self.fc(self.pool(x * self.gain()))

    def gain(self) -> float:
        return 1.0


class Warms(Counts):
    def gain(self) -> float:
        return 0.5 + min(self.t, 5) / 10


class Draws(Net):
    def pool(self, x: Tensor) -> Tensor:
        return super().pool(x) * random.SystemRandom().random()


class Remembers(nn.Module):
    """A spiking neuron that nobody resets."""

    def __init__(self) -> None:
        super().__init__()
        self.potential = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.potential = 0.5 * self.potential + x.detach().mean()
        return x + self.potential


class DrawsInTraining(Net):
    def pool(self, x: Tensor) -> Tensor:
        return super().pool(x) * (random.SystemRandom().random() if self.training else 1)


def by_hand(net: nn.Module, head: nn.Module | None = None, **about: Any) -> StagedModel:
    return StagedModel(net, net.stages, head or PlainHead(net), image_size=32, name="net", **about)


class PlainHead(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.act, self.fc, self.net = net.act, net.fc, [net]

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.net[0].pool(x)
        return pooled, pooled

    def forward(self, x: Tensor) -> Knowledge:
        features, given = self.features(x)
        return Knowledge(features, self.fc(given))


def test_a_counter_in_python_is_no_part_of_a_cut() -> None:
    with pytest.raises(
        SplitError, match=r"t of the network changes with each step of training \(1, then 2\).* stays 0"
    ):
        traced(Counts()).verify()
    with pytest.raises(SplitError, match="logits in step 2 of training differ"):
        traced(Warms()).verify()


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Draws(), r"disagrees with itself.* its logits in eval mode differ by .* draws random numbers in eval mode"),
        (Net(norm=lambda width: Remembers()), r"disagrees with itself.* remembers other images"),
        (DrawsInTraining(), r"disagrees with itself.* of two copies .* logits in train mode differ"),
    ],
    ids=["draws", "remembers", "draws in training"],
)
def test_a_network_that_disagrees_with_itself_is_told_so(net: nn.Module, reason: str) -> None:
    with pytest.raises(SplitError, match=reason):
        by_hand(net).verify()


def test_what_the_network_itself_raises_is_its_own_fault() -> None:
    class Raises(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no GPU")

    with pytest.raises(
        SplitError, match=r"^net: the network itself cannot be run: RuntimeError: no GPU \(.*test_proof\.py:\d+\); mend"
    ):
        by_hand(Raises()).verify()


# ---- features -------------------------------------------------------------------------------------------------------


class Normalises(PlainHead):
    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.net[0].pool(x)
        return nn.functional.normalize(pooled), pooled


class Maxima(PlainHead):
    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.relu().amax((2, 3)), self.net[0].pool(x)


class Detaches(PlainHead):
    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.net[0].pool(x)
        return pooled.detach(), pooled


class Weakens(PlainHead):
    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.net[0].pool(x)
        return pooled.detach() + 0.5 * (pooled - pooled.detach()), pooled


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (Normalises, "features are not the input of the last linear layer: they differ by up to"),
        (Maxima, "features are not the input of the last linear layer: they differ by up to"),
        (Detaches, "features are cut off from the gradient"),
        (Weakens, "features have another gradient than the input"),
    ],
)
def test_features_are_what_the_classifier_is_given(head: type[PlainHead], reason: str) -> None:
    net = Net()
    with pytest.raises(SplitError, match=reason):
        by_hand(net, head(net)).verify()
    proof = by_hand(net, head(net), feature="of my own").verify()
    assert not proof.features and by_hand(net).verify().features


# ---- tokens ---------------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A small transformer whose tokens may be shuffled, merged, or have their class token behind them."""

    def __init__(self, shuffled: bool = False, merged: bool = False, last: bool = False) -> None:
        super().__init__()
        self.embed, self.last = nn.Conv2d(3, 16, 8, 8), last
        self.cls = nn.Parameter(torch.randn(1, 1, 16))
        order = torch.randperm(16, generator=torch.Generator().manual_seed(0)) if shuffled else torch.arange(16)
        self.register_buffer("shuffle", order)
        layers = [nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True) for _ in range(4)]
        self.blocks = nn.Sequential(*layers)
        if merged:
            self.blocks[1] = nn.Sequential(layers[1], Merge())
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)[:, self.shuffle]
        cls = self.cls.expand(x.size(0), -1, -1)
        x = self.blocks(torch.cat([x, cls] if self.last else [cls, x], 1))
        return self.fc(x.mean(1))


class Merge(nn.Module):
    """Eight tokens of all."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(8, 16))

    def forward(self, x: Tensor) -> Tensor:
        return (self.queries @ x.transpose(1, 2)).softmax(-1) @ x


def order_of(net: nn.Module, grid: tuple[int, int]) -> Tensor:
    return net.shuffle.argsort()  # type: ignore[operator]


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> Callable[..., StagedModel]:
    module = types.ModuleType("my_tokens")
    vars(module).update(net=Tokens, order=order_of, wrong=lambda net, grid: torch.arange(16))
    monkeypatch.setitem(sys.modules, "my_tokens", module)

    def build(**arguments: Any) -> StagedModel:
        torch.manual_seed(0)
        return ARCHITECTURES.build(dict(type="module", path="my_tokens:net", image_size=32, **arguments))

    return build


def test_tokens_are_found_where_their_patches_were(tokens: Callable[..., StagedModel]) -> None:
    model = tokens()
    assert [str(s) for s in model.specs] == ["NLC 16 x 4x4 + 1 prefix tokens"] * 4
    assert model.verify().tokens == 4
    with pytest.raises(
        SplitError, match=r"stage 1 .* 4x4 grid row by row behind 1 prefix tokens, but the patch of row"
    ):
        tokens(shuffled=True)


def test_tokens_behind_the_grid_stand_before_it_in_what_a_stage_gives(tokens: Callable[..., StagedModel]) -> None:
    model = tokens(last=True).eval()
    assert [str(s) for s in model.specs] == ["NLC 16 x 4x4 + 1 prefix tokens"] * 4
    assert model.verify().tokens == 4
    images = torch.randn(2, 3, 32, 32)
    given = model.stage_outputs(images, [4])[4]
    own = model.net.blocks(torch.cat([model.net.embed(images).flatten(2).mT, model.net.cls.expand(2, -1, -1)], 1))
    assert torch.equal(given, torch.cat([own[:, -1:], own[:, :-1]], 1))


def test_an_order_can_be_given_and_is_probed_too(tokens: Callable[..., StagedModel]) -> None:
    model = tokens(shuffled=True, order="my_tokens:order")
    assert model.specs[3].order is not None and model.verify().tokens == 4
    assert not tokens(shuffled=True, raster=False).specs[0].raster
    with pytest.raises(SplitError, match="in the order given behind 1 prefix tokens, but the patch"):
        tokens(shuffled=True, order="my_tokens:wrong")
    with pytest.raises(ConfigError, match=r"^order: my_tokens has no function 'ordre'; did you mean 'order'"):
        tokens(order="my_tokens:ordre")


def test_merged_tokens_are_no_grid(tokens: Callable[..., StagedModel]) -> None:
    later = ["blocks.1", "blocks.2", "blocks.3"]
    with pytest.raises(
        SplitError, match=r"stage 1 .* 2x2 grid row by row behind 4 prefix tokens, but .*cut before tokens are merged"
    ):
        tokens(merged=True, stages=later)
    with pytest.raises(
        ConfigError, match=r"behind 'blocks.3' 8 tokens cross, and none is that of a patch of the image"
    ):
        tokens(merged=True, stages=["blocks.0", "blocks.3"], prefix_tokens=1, verify=False)


# ---- statistics and tied weights ------------------------------------------------------------------------------------


class Renorm(nn.Module):
    """A norm of one's own; what it knows is changed in place, or put there anew."""

    def __init__(self, width: int, anew: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("fixed", torch.ones(width, 1, 1))
        self.anew = anew

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean = x.detach().mean((0, 2, 3))
            if self.anew:
                self.mean, self.steps = self.mean.lerp(mean, 0.1), self.steps + 1
            else:
                self.mean.data.lerp_(mean, 0.1)
                self.steps += 1
        return (x - self.mean[:, None, None]) * self.fixed


@pytest.mark.parametrize("anew", [False, True])
def test_any_running_statistics_of_a_stage_that_runs_twice_are_the_fusion_models_own(
    make: Callable[..., Distiller], plugins: Any, images: Tensor, labels: Tensor, anew: bool
) -> None:
    model = distiller(make, plugins, Net(norm=lambda width: Renorm(width, anew)), "T1-3+S4").train()
    for _ in range(4):
        model.losses(images, Batch(labels))
    norm, own = model.student.net.stages[3][2], model.fusions["fusion"].statistics["4"].named()
    assert int(norm.steps) == 4 and norm.mean.any()
    assert {name.rpartition(".")[2] for name in own} == {"mean", "steps"}
    assert [int(value) for name, value in own.items() if name.endswith("steps")] == [4]
    assert not any(torch.equal(value, norm.mean) for name, value in own.items() if name.endswith("mean"))


class Root(Net):
    """Running statistics that stand in the network itself, where one of its methods finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(()))

    def shift(self, x: Tensor) -> Tensor:
        if self.training:
            self.level.lerp_(x.detach().square().mean(), 0.1)
        return x - self.level

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.shift(self.stages(x))))


def declared() -> StagedModel:
    cuts = "stages.0 stages.1 stages.2 stages.3"
    return Declaration("", "stages.*", cuts, "pool fc", post="shift").cut(Root(), image_size=32)


def test_statistics_of_the_network_itself_are_kept_apart_as_well(
    make: Callable[..., Distiller], plugins: Any, images: Tensor, labels: Tensor
) -> None:
    torch.manual_seed(0)
    registry = plugins.registries.architectures
    registry.register_module(name="Mini", module=declared)
    try:
        model = make(dict(type="Mini"), RESMLP, "T1-3+S4").train()
    finally:
        registry.module_dict.pop("Mini")
    twin = declared().train()
    assert twin.verify()
    twin.load_state_dict(model.student.state_dict())
    twin(model.prepare(images, "student"))
    model.losses(images, Batch(labels))
    assert torch.equal(model.student.net.level, twin.net.level)
    own = model.fusions["fusion"].statistics["4"].named()["level"]
    assert own != 0 and not torch.equal(own, twin.net.level)


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        convolution = nn.Conv2d(8, 8, 3, 1, 1)
        self.stages[3].extend([convolution, nn.ReLU(), convolution])


def test_tied_weights_are_written_averaged_and_read_whole(tmp_path: Path, images: Tensor) -> None:
    model = traced(Tied())
    assert model.verify()
    first, second = "net.stages.3.3.weight", "net.stages.3.5.weight"
    hook, run = EMAHook(0.5), SimpleNamespace(distiller=model, resuming=True)
    hook.before_train(run)  # type: ignore[arg-type]
    with torch.no_grad():
        model.net.stages[3][3].weight.add_(1)
    checkpoint: dict[str, Any] = {"state_dict": {k: v.clone() for k, v in model.state_dict().items()}}
    average = checkpoint["state_dict"][first] - 1
    hook.before_save_checkpoint(run, checkpoint)  # type: ignore[arg-type]
    for name in (first, second):
        torch.testing.assert_close(checkpoint["state_dict"][name], average)
        torch.testing.assert_close(checkpoint[TRAINED][name], average + 1)
    save_student(model, tmp_path / "student.safetensors", {})
    other = traced(Tied()).eval()
    load_weights(other.net, str(tmp_path / "student.safetensors"), "net")
    assert torch.equal(other(images), model.eval()(images))
    assert other.net.stages[3][3].weight is other.net.stages[3][5].weight
    hook.after_load_checkpoint(run, checkpoint)  # type: ignore[arg-type]
    other.load_state_dict(checkpoint["state_dict"])
    torch.testing.assert_close(other.net.stages[3][5].weight, average + 1)
    hook.before_train(SimpleNamespace(distiller=other))  # type: ignore[arg-type]
    torch.testing.assert_close(hook._averages[first], average)
