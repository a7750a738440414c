"""Runs tiny.py in a new process, made in the way that the first argument names."""

import multiprocessing
import subprocess
import sys

import tiny

if __name__ == "__main__":
    how, *flags = sys.argv[1:]
    if how == "subprocess":
        subprocess.run([sys.executable, tiny.__file__, *flags], check=True)
    elif how == "loky":
        from joblib import Parallel, delayed

        Parallel(n_jobs=2, backend="loky")(delayed(tiny.main)(flags) for _ in range(1))
    else:
        process = multiprocessing.get_context(how).Process(target=tiny.main, args=(flags,))
        process.start()
        process.join()
        sys.exit(process.exitcode)
