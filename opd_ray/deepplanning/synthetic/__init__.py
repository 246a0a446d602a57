"""A synthetic database for DeepPlanning's travel queries, in the official layout.

``write_databases(tasks, folder, seed)`` of ``write.py`` makes, for each row of the query file, the
folder ``id_<n>/`` with the seven CSV files that the tools and the official evaluator read.
"""
