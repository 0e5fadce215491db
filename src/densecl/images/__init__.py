"""From a source of images to batches of view pairs.

The way of the data: `find` names the files (`listing` in a folder, `lists` in a text file), `sources` reads one with
`decode` or from the `cache`, `pairs` takes its `crops`, `sampler` orders them, `batch` puts them together, and `loader`
does this in several processes. Images that cannot be used go to `quarantine`.
"""
