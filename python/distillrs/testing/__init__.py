"""Hypothesis strategies and checks for your own parts."""
