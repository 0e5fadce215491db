"""Layouts of boxes, a file each. The table of them is `LAYOUTS` in `densecl.evaluation.boxed`."""
