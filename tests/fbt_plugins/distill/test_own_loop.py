"""A distiller in a loop of one's own: built of networks, called with images and labels, without a Runner."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from conftest import CONVNEXT, EDGES, RESMLP, TASK
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fbt_plugins import ConfigError, Distiller, StagedModel

FBT: dict[str, Any] = dict(
    fusion=dict(type="L2GFusion"),
    edges=list(EDGES),
    feature_loss=dict(type="InfoNCELoss"),
    logit_loss=dict(type="OFALoss"),
    task_loss=TASK,
)
FEATURES: dict[str, Any] = dict(edges=["teacher_to_student"], feature_loss=dict(type="InfoNCELoss"))


def net(config: dict[str, Any], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    arguments = {key: value for key, value in config.items() if key != "type"}
    return timm.create_model(arguments.pop("name"), **arguments)


def of_nets(seed: int = 0, **options: Any) -> Distiller:
    teacher, student = net(CONVNEXT), net(RESMLP, 1)
    torch.manual_seed(seed)
    return Distiller.from_models(teacher, student, image_size=32, **(options or FBT))


def test_it_is_the_distiller_that_a_config_builds(images: torch.Tensor, labels: torch.Tensor) -> None:
    ours = of_nets().train()
    configured = Distiller(RESMLP, CONVNEXT, image_size=(32, 32), **FBT).train()
    configured.load_state_dict(ours.state_dict())
    assert configured.teacher is not None and ours.teacher is not None
    configured.teacher.load_state_dict(ours.teacher.state_dict())
    given, expected = ours(images, labels), configured(images, labels, mode="loss")
    assert list(given) == list(expected) and all(torch.equal(given[name], expected[name]) for name in given)
    assert ours.splices == configured.splices and ours.families == configured.families


def test_the_models_are_the_users_own_and_the_teacher_only_is_frozen(
    images: torch.Tensor, labels: torch.Tensor
) -> None:
    teacher, student = net(CONVNEXT), net(RESMLP)
    before = copy.deepcopy((teacher.state_dict(), student.state_dict()))
    distiller = Distiller.from_models(teacher, student.eval(), image_size=32, **FBT)
    assert student.training and not teacher.training  # transformers gives networks in eval mode
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=0.01)
    for _ in range(2):
        distiller.train()
        optimizer.zero_grad()
        sum(distiller(images, labels).values()).backward()
        optimizer.step()
    assert distiller.student.net is student and distiller.teacher.net is teacher
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert all(torch.equal(value, before[0][key]) for key, value in teacher.state_dict().items())
    assert not any(torch.equal(p, before[1][key]) for key, p in student.named_parameters())
    assert not [h for module in teacher.modules() for h in (*module._forward_hooks, *module._forward_pre_hooks)]


def test_its_state_is_what_training_goes_on_from(images: torch.Tensor, labels: torch.Tensor) -> None:
    stopped, fresh = of_nets(), of_nets(seed=9)
    assert {name.split(".")[0] for name in stopped.state_dict()} == {"student", "fusions", "edges"}
    shapes = [value.shape for value in stopped.state_dict().values()]
    assert len(shapes) < len(stopped.student.state_dict()) + len(stopped.teacher.state_dict())
    assert any(not torch.equal(v, fresh.state_dict()[k]) for k, v in stopped.state_dict().items())
    fresh.load_state_dict(stopped.state_dict())
    a, b = stopped(images, labels), fresh(images, labels)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_features_alone_need_no_labels(images: torch.Tensor) -> None:
    (value,) = of_nets(**FEATURES)(images).values()
    value.backward()
    with pytest.raises(ConfigError, match="label"):
        of_nets()(images)


def test_only_losses_can_be_asked_of_a_call(images: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"not 'tensor'; predict\(\)"):
        of_nets()(images, labels, mode="tensor")


def test_a_step_can_be_planned(images: torch.Tensor, labels: torch.Tensor) -> None:
    edges = ["teacher_to_student", "teacher_to_fusion", dict(name="fusion_to_student", begin=0.5, ramp=0.2)]
    distiller = of_nets(**FBT | dict(edges=edges, fusion=dict(type="L2GFusion", splice=["S1-3+T4", "T1-3+S4"])))
    whole = distiller(images, labels)
    seen = set()
    for number in range(6):
        distiller.step = distiller.plan(seed=number, progress=0.0)
        seen.add(distiller.step.splices)
        assert distiller(images, labels)["fusion_to_student/logit"] == 0
    assert seen == {(0,), (1,)}
    distiller.step = distiller.plan(progress=0.6)
    half = distiller(images, labels)
    torch.testing.assert_close(half["fusion_to_student/logit"], whole["fusion_to_student/logit"] / 2)


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        *(
            (
                dict(image_size=size),
                [f"image_size: an image size is a number of pixels or (height, width), not {size!r}"],
            )
            for size in ("64", 64.5, 0, -64, (3, 64, 64), True, ("64", "64"))
        ),
        (dict(data_info=5), ["data_info: expected a dict such as dict(num_classes=10), got 5"]),
        (
            dict(data_info=dict(num_clases=4, num_samples=2.5)),
            [
                "data_info: no key 'num_clases'; did you mean 'num_classes' or 'num_samples' or 'num_labelled'?",
                "data_info: num_samples must be a whole number from 0, not 2.5",
            ],
        ),
        (dict(normalised="no"), ["normalised: expected True or False, got 'no'"]),
    ],
)
def test_what_is_said_about_the_images_is_looked_at(options: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        Distiller.from_models(None, nn.Linear(2, 2), **options)
    assert [line for line in error.value.problems if not line.startswith("model.student")] == lines


# ---- images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "line"),
    {
        "normalised": (lambda x: (x - 0.45) / 0.22, "values from -2.0.* to 2.*normalised=True"),
        "to 255": (lambda x: x * 255, r"in \[0, 1\]"),
        "bytes": (lambda x: (x * 255).to(torch.uint8), "are torch.uint8; give floating-point"),
        "larger": (
            lambda x: nn.functional.interpolate(x, (48, 64)),
            r"48x64 pixels.* 32x32: say image_size=\(48, 64\)",
        ),
        "with NaN": (lambda x: x.where(x > x.min(), torch.nan), "NaN or infinite"),
        "none": (lambda x: x[:0], "the batch is empty"),
        "channels last": (
            lambda x: x.permute(0, 2, 3, 1),
            r"models take 3; the channels are last: give images.permute",
        ),
        "four channels": (lambda x: x[:, [0, 1, 2, 0]], r"4 channels, and the models take 3; give \(N, C, H, W\)"),
        "a list": (list, "the images are a list; give one tensor"),
        "one image": (lambda x: x[0], r"of shape \(3, 32, 32\); give one tensor \(N, C, H, W\)"),
    }.values(),
)
def test_the_first_images_are_looked_at(wrong: Any, line: str, images: torch.Tensor, labels: torch.Tensor) -> None:
    distiller = of_nets()
    with pytest.raises(ConfigError, match=line):
        distiller(wrong(images), labels)
    distiller(images + 0.04, labels)
    distiller(images * 3, labels)  # a loop does not wait for a look at every batch


@pytest.mark.parametrize(
    ("wrong", "line"),
    {
        "floats": (lambda y: y.float(), r"are torch.float32 of shape \(\d+,\); give \(\d+,\) class numbers"),
        "int32": (lambda y: y.int(), "are torch.int32"),
        "too large": (lambda y: y + 10, "have class number 1[0-9]; give numbers from 0 to 9, -1 for an image without"),
        "below -1": (lambda y: y.clamp(max=0) - 2, "class number -2"),
        "too few": (lambda y: y[1:], "are torch.int64 of shape"),
        "other classes": (lambda y: torch.eye(7)[y % 7], r"7\); give .*, 10\) floating-point soft labels"),
        "soft NaN": (lambda y: torch.eye(10)[y] * torch.nan, "NaN or infinite"),
        "a list": (lambda y: y.tolist(), "the labels are a list; give a tensor"),
    }.values(),
)
def test_the_first_labels_are_looked_at(wrong: Any, line: str, images: torch.Tensor, labels: torch.Tensor) -> None:
    distiller = of_nets()
    with pytest.raises(ConfigError, match=line) as error:
        distiller(images, wrong(labels))
    assert "\n" not in str(error.value)
    distiller(images, torch.where(labels == labels[0], -1, labels))


def test_soft_labels_are_fine_and_numbers_of_any_class_where_no_logits_are_compared(
    images: torch.Tensor, labels: torch.Tensor
) -> None:
    of_nets()(images, torch.eye(10)[labels])
    of_nets(**FEATURES)(images, labels + 90)


def test_other_sizes_are_fine_where_nothing_is_built_for_one(images: torch.Tensor, labels: torch.Tensor) -> None:
    teacher, student = net(CONVNEXT), net(CONVNEXT, 1)
    distiller = Distiller.from_models(teacher, student, edges=["teacher_to_student"], logit_loss=dict(type="KDLoss"))
    assert distiller.image_size == (224, 224)  # timm's, for nobody said another
    assert distiller(images).keys() == {"teacher_to_student/logit"}


def test_normalised_images_reach_both_models_as_they_are(images: torch.Tensor, labels: torch.Tensor) -> None:
    student = StagedModel.of(net(RESMLP))
    teacher = StagedModel.of(net(CONVNEXT), mean=student.mean, std=student.std, image_size=32)
    plain = Distiller.from_models(teacher, student, **FBT)
    given = Distiller.from_models(teacher, copy.deepcopy(student), normalised=True, **FBT)
    given.load_state_dict(plain.state_dict())
    values = plain(images, labels), given(plain.prepare(images, "student"), labels)
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])
    assert torch.equal(given.prepare(images, "teacher"), images)


def test_normalised_images_that_a_model_resizes_are_not_cut_off(labels: torch.Tensor) -> None:
    teacher = StagedModel.of(net(CONVNEXT), input_size=64)
    student = StagedModel.of(net(RESMLP), mean=teacher.mean, std=teacher.std)
    distiller = Distiller.from_models(teacher, student, normalised=True, **FEATURES)
    prepared = distiller.prepare(torch.full((1, 3, 32, 32), -2.0), "teacher")
    torch.testing.assert_close(prepared, torch.full((1, 3, 64, 64), -2.0))


def test_one_normalisation_must_be_right_for_both_models() -> None:
    teacher = StagedModel.of(net(CONVNEXT), mean=0.5, std=0.5, image_size=32)
    with pytest.raises(ConfigError, match=r"the teacher mean \(0.5, 0.5, 0.5\) and std .*; give images in \[0, 1\]"):
        Distiller.from_models(teacher, net(RESMLP), normalised=True, **FEATURES)


def test_models_that_share_weights_are_refused() -> None:
    student = net(RESMLP)
    with pytest.raises(ConfigError, match="share weights, and the teacher is frozen: give a deepcopy"):
        Distiller.from_models(student, student, **FEATURES)
    assert all(p.requires_grad for p in student.parameters())


# ---- precision and processes ---------------------------------------------------------------------------------------


def test_mixed_precision(images: torch.Tensor, labels: torch.Tensor) -> None:
    distiller = of_nets().train()
    whole = distiller(images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = distiller(images, labels)
    assert all(value.dtype == torch.float32 for value in mixed.values())
    for name in whole:
        torch.testing.assert_close(mixed[name], whole[name], rtol=0.05, atol=0.05)
    sum(mixed.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.parameters())


@pytest.fixture
def alone(tmp_path: Any) -> Iterator[None]:
    """A process group of one process, in which DistributedDataParallel asks for all that it asks for among many."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def steps(distiller: Distiller, images: torch.Tensor, labels: torch.Tensor | None) -> None:
    wrapped = DistributedDataParallel(distiller)
    for _ in range(2):  # what has no gradient in a step is missed in the next
        sum(wrapped(images, labels).values()).backward()


@pytest.mark.usefixtures("alone")
def test_distributed_data_parallel(images: torch.Tensor, labels: torch.Tensor) -> None:
    steps(of_nets().train(), images, labels)
    with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
        steps(of_nets(**FEATURES).train(), images, None)
    distiller = of_nets(**FEATURES).train()
    before = copy.deepcopy(distiller.state_dict())
    assert distiller.freeze_unreached() == ["student.net.head.weight", "student.net.head.bias"]
    assert all(torch.equal(value, before[key]) for key, value in distiller.state_dict().items())
    assert all(p.grad is None for p in distiller.parameters())
    steps(distiller, images, None)
