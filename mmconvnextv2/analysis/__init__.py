"""Analysis of models' features, and HTML reports of runs."""
