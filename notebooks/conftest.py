collect_ignore_glob = ["*.py"]  # the notebooks' twins, which nbmake runs as notebooks
