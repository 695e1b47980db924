"""Transforms by name: what they make of an image, and what they answer to a mistake."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN
from torchvision.transforms.v2.functional import to_pil_image

from fbt_plugins.data import build_transforms, seeded
from fbt_plugins.errors import ConfigError

IMAGE = torch.arange(3 * 32 * 32).view(3, 32, 32).mul(7).remainder(256).to(torch.uint8)


def test_no_transforms_leave_an_image_as_it_is() -> None:
    transform = build_transforms([], "here")
    assert torch.equal(transform(IMAGE), IMAGE)
    pil = Image.fromarray(IMAGE.permute(1, 2, 0).numpy())
    assert torch.equal(transform(pil), IMAGE)


def test_torchvision_by_name() -> None:
    transform = build_transforms(
        [
            {"type": "Pad", "padding": 4},
            {"type": "RandomHorizontalFlip", "p": 1.0},
            {"type": "Resize", "size": [20, 24], "interpolation": "bicubic"},
        ],
        "here",
    )
    assert transform(IMAGE).shape == (3, 20, 24) and transform(IMAGE).dtype == torch.uint8
    nested = build_transforms(
        [{"type": "RandomApply", "p": 1.0, "transforms": [{"type": "RandomHorizontalFlip", "p": 1.0}]}], "here"
    )
    assert torch.equal(nested(IMAGE), IMAGE.flip(-1))


def test_all_mistakes_are_reported_together_with_their_place() -> None:
    with pytest.raises(ConfigError) as caught:
        build_transforms(
            [
                {"type": "RandomCorp", "size": 32},
                {"type": "RandomCrop", "siz": 32},
                {"type": "RandomHorizontalFlip", "p": 7},
                {"type": "Resize", "size": 8, "interpolation": "bicubi"},
                {"size": 3},
                {"type": "RandomApply", "transforms": [{"type": "Padd", "padding": 1}]},
                {"type": "timm", "inputsize": 224},
                {"type": "Pad", "padding": 1},
            ],
            "CIFAR100.transforms",
        )
    lines = caught.value.problems
    starts = [
        "CIFAR100.transforms[0]: torchvision.transforms.v2 has no 'RandomCorp'; did you mean 'RandomCrop'",
        "CIFAR100.transforms[1] RandomCrop: no argument 'siz'; did you mean 'size'",
        "CIFAR100.transforms[1] RandomCrop: argument 'size' is missing",
        "CIFAR100.transforms[2] RandomHorizontalFlip: ",
        "CIFAR100.transforms[3] Resize: ",
        "CIFAR100.transforms[4]: expected a dict with a 'type', got {'size': 3}",
        "CIFAR100.transforms[5].transforms[0]: torchvision.transforms.v2 has no 'Padd'; did you mean 'Pad'",
        "CIFAR100.transforms[6] timm: no argument 'inputsize'; did you mean 'input_size'",
    ]
    assert len(lines) == len(starts)
    assert all(line.startswith(start) and "\n" not in line for line, start in zip(lines, starts, strict=True)), lines


@pytest.mark.parametrize("configs", [{"type": "Pad"}, "Pad", None])
def test_not_a_list(configs: object) -> None:
    with pytest.raises(ConfigError, match="here: expected a list of dicts"):
        build_transforms(configs, "here")  # type: ignore[arg-type]


def test_timm_evaluation_is_exact() -> None:
    transform = build_transforms([{"type": "timm", "input_size": 32, "crop_pct": 1.0}], "here")
    assert torch.equal(transform(IMAGE), IMAGE)


@pytest.mark.parametrize("mode", ["const", "pixel"])
def test_timm_erases_as_on_normalised_images(mode: str) -> None:
    config = {"type": "timm", "input_size": 32, "is_training": True, "color_jitter": None, "re_mode": mode}
    plain, erasing = (build_transforms([config | {"re_prob": p}], "here") for p in (0.0, 1.0))
    changed = total = 0
    for seed in range(10):
        with seeded(seed):
            expected = plain(IMAGE)
        with seeded(seed):
            erased = erasing(IMAGE)
        assert erased.dtype == torch.uint8
        where = (erased != expected).any(dim=0)
        changed, total = changed + int(where.sum()), total + where.numel()
        if mode == "const":
            colour = torch.tensor(IMAGENET_DEFAULT_MEAN).mul(255).round().to(torch.uint8)
            assert torch.equal(erased[:, where], colour.view(3, 1).expand(-1, int(where.sum())))
        else:
            assert erased[:, where].float().std() > 30
    assert 0.02 < changed / total < 0.34  # between timm's smallest and largest area: the rest is untouched


@pytest.mark.parametrize("argument", ["normalize", "use_prefetcher", "separate"])
def test_timm_arguments_that_change_the_output(argument: str) -> None:
    with pytest.raises(ConfigError, match=rf"here\[0\] timm: no '{argument}' here"):
        build_transforms([{"type": "timm", argument: True}], "here")


def test_timm_augmentation_without_training_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="'auto_augment', 're_prob' without is_training=True would be ignored"):
        build_transforms([{"type": "timm", "auto_augment": "rand-m9", "re_prob": 0.2}], "here")


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "augmix-m9-mstd0.5", "original-mstd0.5", "v0"])
def test_timms_strongest_posterizing_keeps_one_bit(policy: str) -> None:
    (step,) = build_transforms(
        [dict(type="timm", input_size=8, is_training=True, auto_augment=policy)], "t"
    ).transforms[:1]
    (augment,) = [t for t in step.transform.transforms if hasattr(t, "ops") or hasattr(t, "policy")]
    operations = getattr(augment, "ops", None) or [o for part in augment.policy for o in part]
    posterizing = [o for o in operations if o.name.startswith("Posterize")]
    assert posterizing or policy.startswith("augmix")
    image = to_pil_image(torch.full((3, 8, 8), 200, dtype=torch.uint8))
    for operation in posterizing:
        assert operation.aug_fn(image, 0).getpixel((0, 0)) == (128, 128, 128)  # its highest bit alone
        assert operation.aug_fn(image, 2).getpixel((0, 0)) == (192, 192, 192)


@pytest.mark.slow
def test_the_policy_of_the_papers_recipes_can_be_drawn_20000_times() -> None:
    config = dict(type="timm", input_size=8, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25)
    transform = build_transforms([config], "t")
    image = torch.full((3, 8, 8), 200, dtype=torch.uint8)
    for number in range(20_000):
        with seeded(number):
            assert transform(image).shape == (3, 8, 8)


@pytest.mark.parametrize("name", ["Normalize", "LinearTransformation"])
def test_images_are_not_normalised_twice(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"t\[1\] {name}: drop it: each model normalises images in \[0, 1\] itself"):
        build_transforms([dict(type="ToTensor"), dict(type=name, mean=(0.5,), std=(0.5,))], "t")
    with pytest.raises(ConfigError, match=rf"t\[0\].transforms\[0\] {name}: drop it"):
        build_transforms([dict(type="RandomApply", transforms=[dict(type=name)])], "t")


def test_no_functions_in_a_config() -> None:
    with pytest.raises(ConfigError, match=r"t\[0\] Lambda: a config holds no functions: do it in a data set"):
        build_transforms([dict(type="Lambda", lambd=str)], "t")
