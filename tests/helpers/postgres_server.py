# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL server for tests."""

import glob
import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest
import sqlalchemy
from forked_runs import free_port


class Postgres:
    """A PostgreSQL server of a folder, which listens on this machine alone; it is started by `with`."""

    def __init__(self, folder):
        places = [*glob.glob("/usr/lib/postgresql/*/bin"), *os.environ["PATH"].split(os.pathsep)]
        initdb = next((Path(place, "initdb") for place in places if Path(place, "initdb").is_file()), None)
        if initdb is None:
            pytest.skip("no PostgreSQL server")
        user = {}
        if os.getuid() == 0:  # PostgreSQL does not run as root
            user = {"user": "postgres", "group": "postgres"}
            shutil.chown(folder, "postgres", "postgres")
        self.data, port = folder / "data", free_port()
        self.url = f"postgresql://mcm@127.0.0.1:{port}/postgres"
        self.quiet = {"stdout": subprocess.DEVNULL, "cwd": folder, "check": True, **user}
        subprocess.run([initdb, "-D", self.data, "-U", "mcm", "-A", "trust", "--no-sync"], **self.quiet)
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c synchronous_commit=off"
        self.control = [initdb.with_name("pg_ctl"), "-D", self.data, "-w"]
        self.starting = [*self.control, "-o", options, "-l", folder / "log", "start"]

    def start(self):
        subprocess.run(self.starting, **self.quiet)

    def stop(self):
        subprocess.run([*self.control, "-m", "immediate", "stop"], **self.quiet)

    def kill(self):
        """Kills its processes, which then write nothing more."""
        parent = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
        processes = [parent, *parent.children()]
        for process in processes:
            process.kill()
        assert not psutil.wait_procs(processes, 10)[1]

    def run(self, statements):
        engine = sqlalchemy.create_engine(self.url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SET TRANSACTION READ WRITE; {statements}")
        engine.dispose()

    def empty(self):
        """The URL of its database, in which there is nothing now."""
        self.run("ALTER DATABASE postgres RESET ALL; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        return self.url

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.stop()
