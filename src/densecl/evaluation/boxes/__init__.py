"""One file for each family of layouts that boxes come in; `densecl.evaluation.boxed` has the table of them."""
