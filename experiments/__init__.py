"""One question a file: its claim and source in the docstring, then table(rows), figure(rows, stem) and verdict(rows) of
the rows that lth.analysis.load reads. The report at the end of a job or a sweep calls them for each study it finds."""
