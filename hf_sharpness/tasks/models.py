"""From the model section to a configuration and a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .errors import RecipeError, first_line, nearest
from .extra import INSTALL
from .locate import model_folder
from .sections import ModelSection
from .size import check_size
from .sources import Data


@dataclass
class Task:
    """What a task hands to the Trainer.

    Args:
        model: The classifier or language model.
        train_dataset: Examples to train on; so `eval_dataset` and `test_dataset`.
        data_collator: Turns a list of examples into a batch. Default None: Trainer's own.
        processing_class: Tokenizer or image processor, saved with the model. Default None.
        save_with_model: Further files for the model's folder: name to content. Default empty.
    """

    model: Any
    train_dataset: Any
    eval_dataset: Any
    test_dataset: Any
    data_collator: Any = None
    processing_class: Any = None
    save_with_model: dict[str, str] = field(default_factory=dict)


def build_config(section: ModelSection, data: Data | None, default_type: str | None, **defaults: Any) -> Any:
    """Return the model's configuration: stored or default, then `defaults`, then `model.config`, then the labels.

    Args:
        section: The recipe's model section.
        data: Gives the names of the classes. None: there are none.
        default_type: `model_type` where the section names neither a model nor a type; None if there is no default.
        **defaults: Entries that fit the data, used where the configuration is not a stored one.

    Raises:
        RecipeError: No model is named, the configuration cannot be loaded, or an entry of `model.config` is unknown
            or of the wrong type.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    labels: dict[str, Any] = {}
    if data is not None:
        labels = {
            "num_labels": len(data.label_names),
            "id2label": dict(enumerate(data.label_names)),
            "label2id": {name: index for index, name in enumerate(data.label_names)},
        }
    if section.name_or_path is not None:
        name = model_folder(section.name_or_path)
        try:
            stored = AutoConfig.from_pretrained(name, revision=section.revision, trust_remote_code=False)
        except Exception as error:  # not found, no network, not a model folder, ...
            raise _not_loadable("name_or_path", section.name_or_path, error) from error
        _refuse_unknown_entries(section.config, stored)
        return _update(stored, {**section.config, **labels})

    model_type = section.model_type or default_type
    if model_type is None:
        raise RecipeError(
            "model: neither name_or_path nor model_type is given; set --model.name_or_path FOLDER_OR_HUB_ID"
        )
    if model_type not in CONFIG_MAPPING:
        raise RecipeError(
            f"model.model_type: '{model_type}' is unknown to transformers{nearest(model_type, CONFIG_MAPPING)}"
        )
    config = CONFIG_MAPPING[model_type]()
    _refuse_unknown_entries(section.config, config)
    return _update(
        config,
        {
            **{key: value for key, value in defaults.items() if hasattr(config, key)},
            **section.config,
            **labels,
        },
    )


def build_model(auto_class: Any, section: ModelSection, config: Any, limited: bool = False) -> Any:
    """Load the weights of `section.name_or_path` into a model of `config`, or draw random ones.

    Args:
        auto_class: transformers' class of the task.
        section: The recipe's model section.
        config: The model's configuration.
        limited: Refuse a model that does not fit this machine. Default False.

    Raises:
        RecipeError: The weights cannot be loaded, or no such model exists for the configuration.
    """
    import torch

    try:
        if limited:
            check_size(auto_class, config)
        if section.name_or_path is None or not section.pretrained:
            dtype = torch.float32 if section.dtype == "auto" else getattr(torch, section.dtype)
            return auto_class.from_config(config, dtype=dtype)
        return auto_class.from_pretrained(
            model_folder(section.name_or_path),
            config=config,
            dtype=section.dtype,
            revision=section.revision,
            trust_remote_code=False,
            ignore_mismatched_sizes=section.ignore_mismatched_sizes,
        )
    except RecipeError:
        raise
    except Exception as error:
        if "ignore_mismatched_sizes" in str(error):
            raise RecipeError(
                f"model.name_or_path: '{section.name_or_path}' has a head for another number of classes than "
                f"{config.num_labels}; start a new one with --model.ignore_mismatched_sizes true"
            ) from error
        if section.name_or_path is None:
            raise RecipeError(
                f"model.config: no model of type '{config.model_type}' can be made of it: {first_line(error)}"
            ) from error
        if section.config:
            raise RecipeError(
                f"model.config: '{section.name_or_path}' cannot be loaded with {section.config}: {first_line(error)}"
            ) from error
        raise _not_loadable("name_or_path", section.name_or_path, error) from error


def load_tokenizer(section: ModelSection) -> Any:
    """Load the tokenizer the section names.

    Raises:
        RecipeError: None is named, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    key = "tokenizer" if section.tokenizer else "name_or_path"
    name = section.tokenizer or section.name_or_path
    if name is None:
        raise RecipeError(
            "model.tokenizer: a text model without name_or_path needs one; set --model.tokenizer FOLDER_OR_HUB_ID"
        )
    try:
        return AutoTokenizer.from_pretrained(model_folder(name), revision=section.revision, trust_remote_code=False)
    except RecipeError:
        raise
    except Exception as error:
        raise _not_loadable(key, name, error) from error


def load_image_processor(section: ModelSection) -> Any | None:
    """Load the image processor stored with a pretrained model, or return None where the folder holds none.

    Raises:
        RecipeError: There is one, and it cannot be loaded (most often: Pillow is not installed).
    """
    from transformers import AutoImageProcessor
    from transformers.image_processing_base import ImageProcessingMixin

    if section.name_or_path is None:
        return None
    name = model_folder(section.name_or_path)
    try:
        ImageProcessingMixin.get_image_processor_dict(name, revision=section.revision)
    except OSError:
        return None
    try:
        return AutoImageProcessor.from_pretrained(name, revision=section.revision, trust_remote_code=False)
    except Exception as error:
        raise RecipeError(
            f"model.name_or_path: the image processor of '{section.name_or_path}' cannot be loaded: "
            f"{first_line(error)}; it may need `{INSTALL}`"
        ) from error


_NOT_SETTINGS = ("name_or_path",)
"""Entries of a configuration that say where it came from."""


def _refuse_unknown_entries(entries: dict[str, Any], config: Any) -> None:
    for key in entries:
        if not hasattr(config, key) or callable(getattr(type(config), key, None)):
            raise RecipeError(
                f"model.config: unknown entry '{key}' for {type(config).__name__}{nearest(key, config.to_dict())}"
            )
        if key in _NOT_SETTINGS:
            raise RecipeError(f"model.config: '{key}' is no setting of a model; leave it out (see model.{key})")


_STAGES = ("out_features", "out_indices", "stage_names")


def _update(config: Any, entries: dict[str, Any]) -> Any:
    """Rebuild the configuration with other entries, so that its own checks of types and values see them."""
    stored = config.to_dict()
    if "num_hidden_layers" in entries:  # which a backbone's stages are counted in
        stored = {key: value for key, value in stored.items() if key not in _STAGES}
    try:
        return type(config).from_dict({**stored, **entries})
    except Exception as error:
        raise RecipeError(f"model.config: {' '.join(str(error).split())}") from error


def _not_loadable(key: str, name: str, error: Exception) -> RecipeError:
    return RecipeError(
        f"model.{key}: '{name}' cannot be loaded: {first_line(error)}; give a model folder or a Hub id within reach"
    )
