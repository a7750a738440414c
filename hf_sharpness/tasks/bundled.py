"""The recipes that come with the package, and where a recipe is that a user names."""

from __future__ import annotations

from pathlib import Path

from .errors import RecipeError, nearest

ABOUT_RECIPES = """RECIPE is a YAML file, a folder with a recipe.yaml, the name of a bundled recipe (see `hf-sharpness
recipes`), or a repo on the Hub with a recipe.yaml in it (`user/repo`, `user/repo@revision`)."""
RECIPE_NAME = "recipe.yaml"
"""The recipe of a folder, or of a repo on the Hub."""


def bundled_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):  # installed, or a source checkout
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def find_recipe(name: str) -> Path:
    """Return the file for `name`: a path, a folder with a `recipe.yaml`, or the bare name of a bundled recipe.

    What exists locally wins over a bundled name, but for a folder without a recipe.

    Raises:
        RecipeError: None of them exists.
    """
    path = Path(name)
    if path.is_file():
        return path
    if (path / RECIPE_NAME).is_file():
        return path / RECIPE_NAME
    bundled = bundled_recipes()
    if name in bundled:
        return bundled[name]
    if path.is_dir():
        raise RecipeError(f"recipe '{name}': this folder holds no {RECIPE_NAME}; name the file")
    raise RecipeError(
        f"recipe '{name}': no such file, and no bundled recipe has this name{nearest(name, bundled)}; "
        f"bundled are {', '.join(bundled) or 'none'}"
    )
