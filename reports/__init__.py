"""Tables, plots and one offline HTML page from a folder of records.

Of ours it imports ``bench.records`` alone, so it runs on a laptop without torch. The way through
it: ``run`` (a record among others), ``load`` (runs to frames), ``configurations`` (seeds to one
row), ``plots`` and ``tables`` (a file each; the folder is the register), ``findings``
(sentences), ``page`` (the page), ``main`` (the command). ``units`` is the only place where bytes
become GiB.
"""
