"""The paper's figures and tables, drawn from the records of the studies: ``python -m paper_figures``.

Each figure is a module with a function ``make``: the records of its studies in, a `paper_figures.drawing.Drawing` out.
"""
