"""From images to a file of vectors. Knows a backbone and images, and no training run.

The way of the data: `embed` opens weights and images and writes down the `plan`; `vectors` has the batches read and
takes them through the backbone; `parts` keeps what is done, so that a killed process can go on; one of the `formats`
joins the parts into the file. `duplicates` reads such a file.
"""
