"""Evaluation: pure metric functions, thin meters with mergeable state, reports."""
