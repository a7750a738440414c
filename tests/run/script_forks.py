"""Runs scripts, each in a fork of a process that has the slow imports behind it, but none that knows of Trainer.

Reads one request a line, `{"arguments": [...], "folder": ..., "log": ..., "plain": ...}`, and answers with the exit
status. With "plain" the arguments are run as `python` would, without this package.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import sys
import traceback
from typing import Any

HEAVY = (
    "accelerate",
    "datasets",
    "peft",
    "PIL.Image",
    "torch",
    "transformers.modeling_utils",
    "transformers.models.bart.modeling_bart",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
    "transformers.models.vit.modeling_vit",
)


def serve() -> None:
    for name in HEAVY:
        with contextlib.suppress(ImportError):  # peft is optional
            importlib.import_module(name)
    assert "transformers.training_args" not in sys.modules
    importlib.import_module("torch").set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(request: dict[str, Any]) -> None:
    status = 0
    log = os.open(request["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(request["folder"])
    try:
        if request["plain"]:
            sys.argv[:] = request["arguments"]
            sys.path[0] = os.path.dirname(os.path.realpath(sys.argv[0]))
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            from hf_sharpness.run import main

            status = main(request["arguments"])
    except SystemExit as exit_:
        status = exit_.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    serve()
