"""Evaluators."""

from .instance_evaluator import InstanceEvaluator

__all__ = ["InstanceEvaluator"]
