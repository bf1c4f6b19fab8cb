"""Tables, comparisons, plots and pages made from runs."""
