"""How a described block runs. In reading order: ``sequences`` (a block -> its ops), ``inference``
(when our ops may run it, and on which weights), then the weights: ``live`` (on a GPU, read anew at
each forward), ``folding`` and ``freshness`` (on a CPU, kept while nothing changed). ``structure``
notices that a model is no longer what was described; ``look`` is what a model's forward found out
for all of its blocks."""
