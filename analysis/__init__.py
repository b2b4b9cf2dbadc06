"""Studies: a question in, records (JSON, with configuration, seed and environment) out.

A study is a list of configurations; `analysis.records` runs them, keeps a record of each and resumes where it stopped.
"""
