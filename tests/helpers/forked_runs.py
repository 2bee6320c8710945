# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scripts as processes that can be killed, forked from one that has imported everything: they start at once."""

import importlib
import itertools
import multiprocessing
import os
import pkgutil
import signal
import socket
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["modeling_mcm.training.encoder.trainer", "modeling_mcm.evaluation.cases", "pandas"])


def _run(script, options, log, environment):
    """What a process does: a script of training/ with these options, its output in a file."""
    os.environ |= environment
    os.chdir(ROOT)
    multiprocessing.set_start_method("fork", force=True)  # of a data loader's workers, as in a run from a shell
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.argv = [f"{script}.py", *map(str, options)]
    sys.path.insert(0, str(ROOT / "training"))
    importlib.import_module(script).main()


def _run_and_die(moment, functions, action, *arguments):
    calls = itertools.count(1)

    def counted(call):
        def wrapper(*args, **options):
            if next(calls) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return wrapper

    for function in functions:
        place, _, name = function.rpartition(".")
        owner = pkgutil.resolve_name(place)
        setattr(owner, name, counted(getattr(owner, name)))
    action(*arguments)


def kill_at(moment, functions, action, *arguments):
    """Runs an action in a process that is killed (-9) when functions of these names are called that time in all."""
    process = CONTEXT.Process(target=_run_and_die, args=(moment, functions, action, *arguments))
    process.start()
    finish(process, -signal.SIGKILL)


def start(options, log, script="run_pretrain", **environment):
    """A run that goes on beside the test; its `pid` is that of the script's process."""
    process = CONTEXT.Process(target=_run, args=(script, options, str(log), environment))
    process.start()
    return process


def wait_for(condition, process=None, seconds=60):
    """Waits until a condition holds; the process, if one is given, has to run until then."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and (process is None or process.is_alive())
        time.sleep(0.01)


def finish(process, expect=0, log=None):
    """Waits for a run to end, and checks how."""
    process.join(180)
    text = Path(log).read_text(errors="replace") if log else ""
    assert process.exitcode == expect, (process.exitcode, text[-3000:])
    return text


def pretrain(options, log, expect=0):
    """A run from its start to its end; gives its output."""
    return finish(start(options, log), expect, log)


def free_port():
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start_two(options, log, script="run_pretrain"):
    """Two processes of one run, as torchrun would start them; `options` are a list for each."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [start(options[k], f"{log}.{k}", script, RANK=str(k), LOCAL_RANK=str(k), **shared) for k in range(2)]


def run_two(options, log, script="run_pretrain"):
    """A run of two processes from its start to its end; gives the output of each."""
    processes = start_two([options, options], log, script)
    return [finish(process, log=f"{log}.{k}") for k, process in enumerate(processes)]
