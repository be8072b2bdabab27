"""Evaluation: distances between sets of images, and the loss by noise level."""
