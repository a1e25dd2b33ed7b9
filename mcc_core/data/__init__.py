"""Datasets: one VOC-layout reader, one augmentation pipeline, generated shapes."""
