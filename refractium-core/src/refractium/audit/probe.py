"""The process that runs the code of a plugin, so that nothing that the plugin does reaches another process.

The first argument is the file descriptor for the messages of `refractium.audit.report`. The second argument
is a `Job` as JSON. Stdout and stderr lead to one file.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
import time

from msgspec import json

from refractium.audit.effects import Effects
from refractium.audit.loading import check_names, import_core, load
from refractium.audit.report import Job, Report

_MAX_FILE = 1 << 26
_MAX_DATA = 1 << 32
"""Bytes of a file and bytes of memory that a plugin may need (setrlimit(2))."""


def main() -> None:
    """Check the plugin of the job, and end the process."""
    job = json.decode(sys.argv[2], type=Job)
    report = Report(int(sys.argv[1]), job.cpu_seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE, _MAX_FILE))
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_DATA, _MAX_DATA))
    # The kernel sends SIGXCPU after the processor time of a stage, and the parent after a stage without end.
    faulthandler.register(signal.SIGXCPU, all_threads=False, chain=True)
    import_core()
    core = time.process_time()
    effects = Effects(job.cache, sys.stderr.fileno())
    try:
        if job.only_import:
            os.write(sys.stderr.fileno(), b"\n")  # separates the imports of the core from those of the plugin
            began = time.thread_time()
            load(job, report, effects)
            report.fact("import", (time.thread_time() - began, core))
        else:
            _check(job, report, effects)
    except BaseException as error:  # noqa: BLE001 - any attribute of an object of a plugin may raise
        report.raised("check-fails", f"plugin '{job.id}'", error, "while the check looks at its objects")
    report.done()
    # Neither a thread nor a function that the plugin registered with atexit may keep the process.
    os._exit(0)


def _check(job: Job, report: Report, effects: Effects) -> None:
    given = load(job, report, effects)
    claims = [dict(zip(("kind", "name", "transport"), claim, strict=True)) for claim in given.claims]
    report.fact("objects", claims)
    report.stage(f"plugin '{job.id}'", "the names of the installed plugins")
    check_names(job, given, report)
    # A check imports its modules after the plugin, so that the import of the plugin starts from the core.
    if given.protocols:
        from refractium.audit.protocols import check_protocols  # noqa: PLC0415 - see above

        check_protocols(job, given, report, effects)
    if given.hooks:
        from refractium.audit.hooks import check_hooks  # noqa: PLC0415 - see above

        check_hooks(given, report)
    if given.balancers:
        from refractium.audit.balancers import check_balancers  # noqa: PLC0415 - see above

        check_balancers(given, report)
    if given.health_checks:
        from refractium.audit.health_checks import check_health_checks  # noqa: PLC0415 - see above

        check_health_checks(given, report)
    if given.commands:
        from refractium.audit.commands import check_commands  # noqa: PLC0415 - see above

        check_commands(given, report)


if __name__ == "__main__":
    main()
