"""One question a file: its claim and source in the docstring, then table(rows), verdict(rows), and figure(rows, stem)
where the curves against sparsity that every report has are not all, of the rows that lth.analysis.load reads. The
report at the end of a job or a sweep calls them for each study it finds."""
