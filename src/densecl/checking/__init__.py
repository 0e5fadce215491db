"""What is wrong with images and settings, before a run costs hours: everything is read once.

`check` is the command. `survey` reads the images in data-loading workers and counts; `copies` finds images that are the
same; `cost` measures a step; `findings` says, from all that, what should be put right first.
"""
