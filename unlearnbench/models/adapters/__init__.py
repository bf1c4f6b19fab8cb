"""Adapters: trainable additions to a model's layers."""
