"""Data: the data sets by name, their transforms, the order of their images, and mixup and CutMix.

All randomness is a function of numbers: the order of (seed, epoch), an image's augmentation of (seed, epoch, index),
the mixing of a batch of a seed that its caller derives. So nothing has to be saved for an exact resume, and the number
of workers changes nothing. Images are uint8 up to the batch, where they are divided by 255.

Importing this registers the data sets in mmengine's DATASETS and the sampler in DATA_SAMPLERS.
"""

from ..randomness import derive_seed, seeded, stratified_order
from .batched import InMemoryLoader, batched_transforms
from .datasets import CIFAR10, CIFAR100, FashionMNIST, FashionMNISTMini, ImageFolder
from .image_dataset import NO_LABEL, ImageDataset, InMemoryDataset
from .images import Images
from .mixing import Mixing
from .sampler import EpochSampler, SeededSampler
from .timm_data import TimmDataset
from .transforms import TimmTransform, build_transforms

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "NO_LABEL",
    "EpochSampler",
    "FashionMNIST",
    "FashionMNISTMini",
    "ImageDataset",
    "ImageFolder",
    "Images",
    "InMemoryDataset",
    "InMemoryLoader",
    "Mixing",
    "SeededSampler",
    "TimmDataset",
    "TimmTransform",
    "batched_transforms",
    "build_transforms",
    "derive_seed",
    "seeded",
    "stratified_order",
]
