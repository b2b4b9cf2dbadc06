"""What the commands that measure have in common: runs in one process, anew if asked, and their records in one file."""

import sys

from analysis.records import record_path, run_study, write_record

__all__ = ["measured", "write_collected"]


def measured(run, configs, folder, *, again):
    """The records of all configurations; ``again`` measures what has one already.

    One process: what is compared takes turns in it.
    """
    if again:
        for config in configs:
            record_path(folder, config).unlink(missing_ok=True)
    try:
        return run_study(run, configs, folder, workers=1)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Finished runs are recorded: the same command goes on from there.")


def write_collected(path, records):
    """Write the records into one file, with the environment of the last one."""
    collected = [{"config": r["config"], "results": r["results"], "seconds": r["seconds"]} for r in records]
    write_record(path, {"environment": records[-1]["environment"], "records": collected})
