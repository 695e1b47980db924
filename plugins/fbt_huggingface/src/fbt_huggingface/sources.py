"""Configs and weights of transformers: made from arguments, read from folders, or had from the Hugging Face Hub."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fbt_plugins import ConfigError, FBTError, UnknownNameError, nearest

from .families import FAMILIES

OWN = "attn_implementation"  # the one argument of every config that matters to a classifier's arithmetic


def is_folder(source: str) -> bool:
    """Whether it is a folder of this machine, as ``save_pretrained`` writes it, and not a name on the Hub."""
    return (Path(source).expanduser() / "config.json").is_file()


def read_config(source: str) -> Any:
    """The config of a folder or of a model on the Hub.

    Raises:
        FBTError: if it cannot be had.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(_path(source), trust_remote_code=False, **_where(source))
    except Exception as error:  # transformers raises a different type for each way in which this can fail
        raise _cannot_be_had(source, error) from error


def name_of(config: Any, asked: str | None, source: str) -> str:
    """The family of a model that was read.

    Args:
        config: its config.
        asked: the name that the user gave, if any.
        source: where it comes from, for the error line.

    Raises:
        ConfigError: if it is of another type than the one that was asked for.
        UnknownNameError: if it cannot be cut.
    """
    by_class = {family.classifier: name for name, family in FAMILIES.items()}
    found = [by_class[a] for a in config.architectures or () if a in by_class]
    name = asked or (found[0] if found else config.model_type)
    if model_class(name).config_class.model_type != config.model_type:
        raise ConfigError(f"{source!r} is a {config.model_type!r}, not a {name!r}")
    return name


def model_class(name: str) -> Any:
    """transformers' class for image classification.

    Raises:
        UnknownNameError: with the nearest names.
    """
    import transformers  # here, not above: half a second, which those who don't ask for it should not wait

    if name not in FAMILIES:
        if name in _of_transformers():
            raise UnknownNameError(
                f"transformers has {name!r}, and this plugin has no cut for it: try type='module' with a function of "
                "yours that returns the model"
            )
        hint = nearest(name, FAMILIES) or f"; known: {', '.join(FAMILIES)}"
        raise UnknownNameError(f"type 'huggingface' has no model {name!r}{hint}")
    return getattr(transformers, FAMILIES[name].classifier)


def _of_transformers() -> set[str]:
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    return {config.model_type for config in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING}


def make_config(name: str, num_classes: int, arguments: Mapping[str, Any], stored: Any = None) -> Any:
    """A config with these arguments.

    Args:
        name: of the family.
        num_classes: number of logits.
        arguments: of the config.
        stored: a config that the rest is taken from.

    Raises:
        ConfigError: if there is no such argument, or its value is refused.
    """
    config_class = model_class(name).config_class
    known = known_arguments(config_class)
    for argument in arguments:
        if argument not in known:
            hint = nearest(argument, [*known, "num_classes"], limit=0)
            raise ConfigError(f"{name}: its {config_class.__name__} takes no argument {argument!r}{hint}")
    values = stored.to_dict() if stored is not None else {}
    if stored is not None and stored.num_labels != num_classes:
        values = {k: v for k, v in values.items() if k not in ("id2label", "label2id", "num_labels")}
    try:
        return config_class.from_dict({**values, **arguments}, num_labels=num_classes)
    except Exception as error:  # huggingface_hub's checks of types raise a class of their own
        raise refused(name, error) from error


def known_arguments(config_class: Any) -> set[str]:
    """What a config takes that says how the model is built; the rest is for other tasks or for output."""
    from transformers import PreTrainedConfig

    own = set(inspect.signature(config_class.__init__).parameters)
    return (own - set(inspect.signature(PreTrainedConfig.__init__).parameters)) | {*config_class.attribute_map, OWN}


def changed_arguments(config: Any) -> dict[str, Any]:
    """What a config says that its class does not say by itself: enough to build the model again."""
    values, defaults = config.to_dict(), type(config)().to_dict()
    names = known_arguments(type(config)) & values.keys()
    return {k: values[k] for k in sorted(names) if values[k] != defaults.get(k)}


def load_model(name: str, source: str, config: Any, fresh_head: bool) -> Any:
    """A model with the weights of a folder or of the Hub; safetensors only, so that nothing is executed.

    Args:
        name: of the family.
        source: the folder, or "org/name".
        config: of the model.
        fresh_head: whether the head is a fresh one, whatever the file has.

    Raises:
        FBTError: if the weights cannot be had, or do not fit.
    """
    from transformers import logging

    kind, verbosity = model_class(name), logging.get_verbosity()
    logging.set_verbosity_error()  # its report of what does not fit is a table; what matters of it is judged below
    try:
        model, info = kind.from_pretrained(
            _path(source),
            config=config,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
            **_where(source),
        )
    except Exception as error:
        raise _cannot_be_had(source, error) from error
    finally:
        logging.set_verbosity(verbosity)
    body = f"{kind.base_model_prefix}."
    differ = sorted(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    problems = {"of another shape": differ, "missing": sorted(info["missing_keys"])}
    if fresh_head:  # what else the file holds is another task's head
        problems = {what: [k for k in keys if k.startswith(body)] for what, keys in problems.items()}
    else:
        problems["unknown"] = sorted(info["unexpected_keys"])
    parts = [f"{len(keys)} {what} ({keys[0]}, ...)" for what, keys in problems.items() if keys]
    if parts:
        hint = "" if fresh_head else "; head='new' puts a fresh head on it, which has to be trained"
        raise FBTError(f"{source!r} does not fit {name}: {' and '.join(parts)}{hint}")
    if fresh_head:
        fresh = {key: value for key, value in kind(config).state_dict().items() if not key.startswith(body)}
        model.load_state_dict(fresh, strict=False)
    return model.train()


def normalisation(source: str) -> dict[str, Any]:
    """Mean and std that a folder's or the Hub's preprocessor_config.json states, if there is one."""
    from transformers import ImageProcessingMixin

    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(_path(source), **_where(source))
    except Exception:  # many models come without
        return {}
    if values.get("do_normalize") is False:
        return {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    return {to: tuple(values[key]) for to, key in (("mean", "image_mean"), ("std", "image_std")) if values.get(key)}


def refused(name: str, error: Exception) -> ConfigError:
    """What transformers says about arguments, on one line."""
    return ConfigError(f"{name}: transformers refuses these arguments ({_one_line(error)})")


def _cannot_be_had(source: str, error: Exception) -> FBTError:
    if is_folder(source):
        return FBTError(f"{source!r}: transformers cannot load this folder ({_one_line(error)})")
    return FBTError(
        f"{source!r}: not a folder with a config.json, and not to be had from the Hugging Face Hub "
        f"({_one_line(error)}); without a network, name a folder that save_pretrained wrote"
    )


def _path(source: str) -> str:
    return str(Path(source).expanduser()) if is_folder(source) else source


def _where(source: str) -> dict[str, bool]:
    return {"local_files_only": is_folder(source)}


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
