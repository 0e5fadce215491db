"""Ties images, augmentation and method together into a run, on Lightning's Trainer."""
