"""What the pages of the benchmarks are made of: tables, numbers with units, and where the numbers come from."""

__all__ = ["duration", "provenance", "size", "table"]


def provenance(command, environment):
    """The command that wrote a page, and where it measured."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    commit = f"commit {environment['git']['commit'][:7]}" if environment["git"] else "no checkout"
    return (
        f"Written by `{command}` from its records: {environment['cpu']}, {environment['cpu_count']} CPUs, "
        f"{environment['time'][:10]}, {commit}; Python {environment['python']}, {versions}."
    )


def duration(seconds):
    """Three digits, and a unit."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.2g} µs"


def size(number):
    """Bytes, three digits and a unit."""
    return f"{number / 2**20:.3g} MiB" if number >= 2**20 else f"{number / 2**10:.3g} KiB"


def table(header, rows):
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"
