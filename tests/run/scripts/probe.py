"""Tells what a script can see of how it was started, then ends in the way that its first argument names."""

import os
import pickle
import signal
import sys
import time
import warnings
from dataclasses import dataclass

import probe_helper


@dataclass
class Thing:
    value: int


if __name__ == "__main__":
    main = sys.modules["__main__"]
    print(__name__, __file__, __doc__, __package__, __spec__ and __spec__.name, type(__loader__).__name__)
    print(sorted(globals().keys() - {"__annotations__"}))
    print(sys.argv, sys.path[0], os.getcwd(), __builtins__)
    print(main.Thing is Thing, pickle.loads(pickle.dumps(Thing(3))), main.__dict__ is globals())
    print([name for name in sys.modules if name.split(".")[0] in ("torch", "transformers")])
    warnings.warn("shown, because it is raised in __main__", DeprecationWarning)
    match sys.argv[1:]:
        case ["raise"]:
            probe_helper.fail()
        case ["chain"]:
            try:
                probe_helper.fail()
            except ValueError as error:
                raise KeyError("another") from error
        case ["exit", status]:
            sys.exit(int(status))
        case ["message"]:
            sys.exit("a message")
        case ["interrupt"]:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        case ["excepthook"]:
            sys.excepthook = lambda kind, error, traceback: print("hook", kind, traceback.tb_frame.f_code.co_name)
            probe_helper.fail()
