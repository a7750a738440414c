"""Read by every Python that a program under `hf-sharpness run` starts anew: has transformers' import bring our classes.

Its folder is in front of PYTHONPATH and holds nothing else. Only the standard library is used, and nothing of
hf_sharpness is imported until somebody imports transformers. Where hf_sharpness, or what it needs, is missing, nothing
happens. The sitecustomize that would have been read without this one is read after it.
"""

import importlib.metadata
import importlib.util
import os
import sys
from importlib.machinery import PathFinder

OLDEST_TRANSFORMERS = 5


class Watch:
    """An import hook that puts hf_sharpness's own in its place when transformers is imported."""

    def __init__(self):
        self.is_done = False

    def find_spec(self, name, path=None, target=None):
        if name != "transformers" or self.is_done:
            return None
        self.is_done = True
        try:
            check_versions()
            from hf_sharpness.run.classes import install

            install()
        except ImportError as error:
            report(f"{sys.executable}: {error}")
            return None
        return sys.meta_path[0].find_spec(name, path, target)  # what `install` put there


def check_versions():
    """Raise an ImportError where hf_sharpness would not work."""
    for name in ("torch", "accelerate"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"No module named {name!r}")
    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return  # run from its source, or not there at all
    if int(version.partition(".")[0]) < OLDEST_TRANSFORMERS:
        raise ImportError(f"transformers {version} is older than {OLDEST_TRANSFORMERS}.0")


def report(reason):
    """Leave word for the `hf-sharpness run` that waits."""
    folder = os.environ.get("HF_SHARPNESS_REPORTS")
    if folder and os.path.isdir(folder):
        with open(os.path.join(folder, f"{os.getpid()}.missing"), "w", encoding="utf-8") as file:
            file.write(reason)


def run_next():
    """Read the next sitecustomize on the path, as if this one were not there."""
    own = os.path.dirname(os.path.abspath(__file__))
    places = [position for position, entry in enumerate(sys.path) if os.path.abspath(entry) == own]
    first = places[0] if places else 0
    for position in reversed(places):
        del sys.path[position]
    # Only behind our own place: what is in front has been read, and may be what read this.
    spec = PathFinder.find_spec(__name__, sys.path[first:])
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules[__name__] = module
        spec.loader.exec_module(module)


sys.meta_path.insert(0, Watch())
run_next()
