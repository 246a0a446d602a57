"""A synthetic database for DeepPlanning's travel queries, in the official layout.

``write_databases(tasks, folder, seed)`` of ``write.py`` makes, for each row of the query file, the
folder ``id_<n>/`` with the seven CSV files that the tools and the official evaluator read; for all
120 tasks this takes seconds and 60 MB. A folder that was made so has the file ``synthetic.json``,
which ``is_synthetic`` looks for.

Around what the constraints of a task say, all else is invented. What a constraint names is its only
answer: the cheapest of its brand, the only hotel with that star and service, the highest-rated of
its type. The others miss it, some of them in one respect alone: a train with a change is cheaper
than the cheapest direct one, a hotel of the right star lacks the service. Prices and ratings are
those of the constraints, but where they would spoil another constraint. There are 14 hotels, 20
attractions, 5 to 8 restaurants near each, and for trains and flights 5 to 7 direct journeys and one
with a change each way. Every ordered pair of places is in the distance matrix, so that no check of
the evaluator is skipped. Names are in English; where a query names a place in Chinese, the table
has the English name of the constraint.

``gold_plan(task, folder)`` of ``gold_plan.py`` finds a whole plan: its ``text()`` is in the lines
that the benchmark's prompt prescribes, its ``json()`` is what the evaluator reads.
"""
