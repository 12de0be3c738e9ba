"""Pareto dominance and hypervolume: arrays in, arrays out; every objective is minimized."""
