"""Models as a row of stages: their shapes and knowledge, how a cut is declared, and the proof that it is the model."""

import copy
import dataclasses

import pytest
import torch
from conftest import CNN, CONVNEXT, RESMLP, SWIN, VIT
from torch import nn

from fbt_plugins import ARCHITECTURES, Knowledge
from fbt_plugins.errors import ConfigError, FBTError
from fbt_plugins.models.declaration import Declaration
from fbt_plugins.models.proof import SplitError, _each_once
from fbt_plugins.models.shapes import StageSpec
from fbt_plugins.models.staged import StagedModel


class Toy(nn.Module):
    """A network with everything that can go wrong: a direct parameter, BatchNorm, dropout, an unused branch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4)) for _ in range(4)))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5))
        self.fc = nn.Linear(4, 3)

    def gain(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 + self.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.blocks(self.gain(self.conv(x)))))


DECLARED = Declaration(stem="conv gain", units="blocks.*", cuts="blocks.0 blocks.1 blocks.2 blocks.3", head="pool fc")


@pytest.mark.parametrize("config", [CNN, CONVNEXT, RESMLP, SWIN, VIT], ids=lambda c: c["name"])
def test_stages_share_the_parameters_of_net_and_add_none(config: dict) -> None:
    model = ARCHITECTURES.build(config)
    own = {id(p) for p in model.net.parameters()}
    parts = [id(p) for part in (*model.stages, model.head) for p in part.parameters()]
    assert set(parts) == own and len(parts) == len(own)
    assert list(model.state_dict()) == [f"net.{k}" for k in model.net.state_dict()]
    assert [n for n, _ in model.named_parameters()] == [f"net.{n}" for n, _ in model.net.named_parameters()]


def test_stages_follow_the_model_to_another_dtype_and_through_a_copy() -> None:
    model = ARCHITECTURES.build(VIT).double()
    assert {p.dtype for part in (*model.stages, model.head) for p in part.parameters()} == {torch.float64}
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.net.parameters():
            parameter.zero_()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(twin(images), twin.net(images))
    assert not torch.equal(twin(images), model(images))


def test_direct_parameters_are_linked_again_after_to_empty() -> None:
    with torch.device("meta"):
        model = ARCHITECTURES.build(VIT)
    model.to_empty(device="cpu")
    assert {id(p) for p in model.stages[0].parameters()} <= {id(p) for p in model.net.parameters()}


def test_knowledge_keeps_the_stages_that_are_asked_for(images: torch.Tensor) -> None:
    model = ARCHITECTURES.build(CNN).eval()
    known = model.knowledge(images, needs=(1, 3))
    assert set(known.stages) == {1, 3}
    assert torch.equal(known.logits, model.net(images))
    assert torch.equal(known.logits, model.net.fc(known.features))
    assert known.stages[3].shape == (5, 28, 2, 2)
    assert isinstance(model.head(model.stages[3](known.stages[3])), Knowledge)
    assert torch.equal(model.head(model.stages[3](known.stages[3])).logits, known.logits)


def test_stage_outputs_runs_nothing_behind_the_last_stage_needed(images: torch.Tensor) -> None:
    model = ARCHITECTURES.build(CNN).eval()
    ran: list[int] = []
    for number, stage in enumerate(model.stages, 1):
        stage.register_forward_hook(lambda *_, n=number: ran.append(n))
    model.stage_outputs(images, (2,))
    assert ran == [1, 2]


def test_shapes_need_no_memory_and_no_weights() -> None:
    with torch.device("meta"):
        model = ARCHITECTURES.build(dict(type="timm", name="vit_large_patch16_224", num_classes=1000))
    assert model.specs[3] == StageSpec("NLC", 1024, (14, 14), 1, "attention")
    assert model.num_features == 1024


def test_non_square_images_get_a_non_square_grid() -> None:
    model = ARCHITECTURES.build(dict(type="timm", name="vit_tiny_patch16_224", num_classes=2, img_size=(64, 128)))
    assert model.specs[0].grid == (4, 8)


def test_an_image_size_that_does_not_fit_is_one_clear_line() -> None:
    model = ARCHITECTURES.build(dict(type="timm", name="vit_tiny_patch16_224", num_classes=2))
    with pytest.raises(FBTError, match=r"cannot take images of 32x32 pixels.*input_size") as error:
        model.specs_at((32, 32))
    assert "\n" not in str(error.value)


class Tokens(nn.Module):
    """17 tokens of an 8 x 8 image: one of its own, and 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, 6))
        self.embed = nn.Conv2d(3, 6, 2, 2)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.fc = nn.Linear(6, 3)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.cls.expand(len(x), -1, -1), self.embed(x).flatten(2).transpose(1, 2)], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x[:, 0])


def first_token(net: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[:, 0], net.fc(x[:, 0])  # type: ignore[operator]


def tokens(**about: object) -> StagedModel:
    cut = Declaration("tokens", "blocks.*", "blocks.0 blocks.1", first_token, layout="NLC")
    return cut.cut(Tokens(), **({"image_size": 8} | about))


def test_tokens_are_on_a_grid_of_the_images_proportions_or_refused() -> None:
    assert tokens(prefix_tokens=1).verify().parameters == 9 and tokens(prefix_tokens=1).specs[0].grid == (4, 4)
    for wrong in (0, 2, 3, 17, 20):
        with pytest.raises(FBTError, match=r"17 tokens, which without .* no grid .*; prefix_tokens=1 would leave 4x4"):
            _ = tokens(prefix_tokens=wrong).specs


def test_sizes_and_normalisation_may_be_one_number() -> None:
    model = DECLARED.cut(Toy(), image_size=8, mean=0.5, std=(0.25,), input_size=(4, 8))
    assert (model.image_size, model.input_size, model.mean, model.std) == ((4, 8), (4, 8), (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ValueError, match="mean has 2 values, and images have 3 channels"):
        DECLARED.cut(Toy(), mean=(0.5, 0.5))
    with pytest.raises(ValueError, match="an image size is a number of pixels or"):
        DECLARED.cut(Toy(), image_size=(8, 8, 8))


def test_start_values_of_prefix_tokens_are_a_copy() -> None:
    net = Tokens()
    model = StagedModel(net, [nn.Identity(), nn.Identity()], nn.Identity(), prefix=net.cls[0])
    assert copy.deepcopy(model)._told.prefix is not net.cls and not model._told.prefix.requires_grad


def test_an_order_has_a_number_for_each_position() -> None:
    declared = Declaration("tokens", "blocks.*", "blocks.0 blocks.1", first_token, layout="NLC", raster=False)
    model = declared.cut(Tokens(), image_size=8, prefix_tokens=1, order=lambda net, grid: torch.arange(5))
    with pytest.raises(FBTError, match=r"has an order of \(5,\) token numbers for a grid of 4x4"):
        _ = model.specs


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_verify_takes_networks_with_torchs_old_weight_norm() -> None:
    net = Toy()
    nn.utils.weight_norm(next(module for module in net.modules() if isinstance(module, nn.Conv2d)))
    DECLARED.cut(net, image_size=(8, 8)).verify()


def test_a_stage_gives_one_tensor() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    model = StagedModel(Toy(), [Two(), nn.Identity()], nn.Identity(), image_size=8, name="two")
    with pytest.raises(FBTError, match=r"^two has a stage 1 that gives a tuple, not one tensor: cut where one passes$"):
        _ = model.specs


def test_a_layout_that_puts_width_where_positions_are_is_refused() -> None:
    model = dataclasses.replace(DECLARED, layout="NHWC").cut(Toy(), image_size=12)
    line = "has a stage 1 of 4x6x6 per image: as NHWC a grid of 4x6 of 12x12 pixels, as NCHW 6x6; set layout to 'NCHW'"
    with pytest.raises(FBTError, match=line):
        _ = model.specs


def test_start_values_that_fit_no_stage_are_refused() -> None:
    assert tokens(prefix_tokens=1, prefix=torch.ones(1, 6)).specs[0].prefix is not None
    with pytest.raises(FBTError, match=r"has a prefix of shape \(2, 6\), not \(1, 6\)"):
        _ = tokens(prefix_tokens=1, prefix=torch.ones(2, 6)).specs
    for wrong in ("1", -1, (1, 1, 1)):
        with pytest.raises((ValueError, ConfigError), match="prefix_tokens must be a number"):
            tokens(prefix_tokens=wrong)


def test_a_head_gives_pooled_features() -> None:
    model = Declaration("tokens", "blocks.*", "blocks.0 blocks.1", "fc", layout="NLC").cut(
        Tokens(), image_size=8, prefix_tokens=1
    )
    with pytest.raises(FBTError, match=r"a head that gives features \(1, 17, 6\) .* not \(N, D\)"):
        model.verify()


# ---- declaration ----------------------------------------------------------------------------------------------------


def test_a_third_party_network_is_one_line_of_data() -> None:
    model = DECLARED.cut(Toy(), image_size=(8, 8))
    proof = model.verify()
    assert (proof.parameters, proof.buffers) == (len(list(model.net.parameters())), 12)
    assert model.specs == [StageSpec("NCHW", 4, (4, 4))] * 4
    assert (model.num_features, model.num_classes, model.family) == (4, 3, "cnn")


def test_stages_can_be_a_number_or_names() -> None:
    assert len(ARCHITECTURES.build(dict(RESMLP, num_blocks=6, stages=6)).stages) == 6
    assert len(ARCHITECTURES.build(dict(RESMLP, num_blocks=2, stages=2)).stages) == 2
    with pytest.raises(ConfigError, match="2 blocks cannot make 4 stages; set stages to at most 2"):
        ARCHITECTURES.build(dict(RESMLP, num_blocks=2))
    named = ARCHITECTURES.build(dict(CNN, stages=["layer1.0", "layer2", "layer4"]))
    assert [len(s.steps) for s in named.stages] == [5, 3, 4]
    named.verify(32)
    with pytest.raises(ConfigError, match="did you mean 'layer3'"):
        ARCHITECTURES.build(dict(CNN, stages=["layer1", "layre3", "layer4"]))
    with pytest.raises(ConfigError, match="must end the row"):
        ARCHITECTURES.build(dict(CNN, stages=["layer1", "layer2"]))
    with pytest.raises(ConfigError, match="cut into 2 to 8 stages"):
        ARCHITECTURES.build(dict(CNN, stages=9))


def test_a_cut_that_names_what_is_not_there_is_one_clear_line() -> None:
    for changes, line in (
        (dict(stem="conv gian"), "Toy has no module or method 'gian'; did you mean 'gain'?"),
        (dict(units="block.*"), "Toy has no module 'block'; did you mean 'blocks"),
        (dict(cuts="blocks.0 blocks.7"), "cuts: no unit 'blocks.7' to cut behind"),
        (dict(cuts="blocks.2 blocks.1 blocks.3"), "cuts: 'blocks.1' does not come after the cut before it"),
        (dict(cuts="blocks.0 blocks.2"), "must end the row; add 'blocks.3'"),
        (dict(units="blocks.{0,1,2,5}"), "Toy has no module or method 'blocks.5'; did you mean 'blocks"),
        (dict(head="pool fd"), "Toy has no module or method 'fd'; known: "),
    ):
        with pytest.raises(ConfigError) as refused:
            dataclasses.replace(DECLARED, **changes).cut(Toy(), image_size=(8, 8))
        assert line in str(refused.value), refused.value


def test_what_a_cut_is_told_is_held_against_a_staged_model() -> None:
    with pytest.raises(ConfigError, match="no argument 'image_sise'; did you mean 'image_size"):
        DECLARED.cut(Toy(), image_sise=8)


# ---- proof ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(stem="conv"), "logits in eval mode differ"),  # a gain of 0 + 1 would hide this without perturbation
        (dict(units="blocks.{0,2,1,3}"), "logits in eval mode differ"),
        (dict(units="blocks.{0,1,3}"), "logits in eval mode differ"),
        (dict(head="pool.0 pool.1 fc"), "in train mode differ"),  # the dropout
    ],
)
def test_verify_fails_where_the_stages_are_not_the_model(changes: dict, reason: str) -> None:
    wrong = dataclasses.replace(DECLARED, cuts="blocks.0 blocks.3", **changes)
    with pytest.raises(SplitError, match=reason):
        wrong.cut(Toy(), image_size=(8, 8)).verify()


def test_verify_fails_where_a_parameter_is_in_no_stage_or_in_two() -> None:
    good = DECLARED.cut(Toy(), image_size=(8, 8))
    for stages, times in (([nn.Sequential(*good.stages), *good.stages[:1]], 2), ([_Hidden(good.stages)], 0)):
        with pytest.raises(SplitError, match=f"is in {times} of the stages"):
            _each_once(StagedModel(good.net, stages, good.head, image_size=(8, 8)))


class _Hidden(nn.Module):
    """Runs modules that it does not list."""

    def __init__(self, stages: nn.ModuleList) -> None:
        super().__init__()
        self.stages = list(stages)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


def test_verify_leaves_the_model_alone() -> None:
    model = ARCHITECTURES.build(CNN)
    before = copy.deepcopy(model.state_dict())
    model.eval()
    model.verify(32)
    assert not model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
